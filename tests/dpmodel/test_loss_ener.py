"""The energy loss against loops, against DeePMD-kit's numbers, and against padding."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.errors import InputError
from dpmodel.graph import Graph
from dpmodel.losses import CONFIGS, EnerLoss, EnerLossConfig, build_loss

GOLDEN = Path(__file__).parents[1] / "data" / "losses" / "ener.npz"
"""Predictions and labels of random models, with the losses that DeePMD-kit 3.2.0 computed from them."""

ALL = {"start_pref_v": 0.5, "limit_pref_v": 2.0, "start_pref_ae": 3.0, "limit_pref_ae": 1.0}
PF = {"start_pref_pf": 2.0, "limit_pref_pf": 4.0}
GF = {"start_pref_gf": 0.7, "limit_pref_gf": 0.1, "numb_generalized_coord": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "mse": {**ALL, **PF, **GF},
    "intensive": {**ALL, "intensive_ener_virial": True},
    "relative": {**ALL, **PF, **GF, "relative_f": 0.7},
    "coeff": {**ALL, "enable_atom_ener_coeff": True},
    "huber": {**ALL, "use_huber": True, "huber_delta": 0.4},
    "huber3": {**ALL, "use_huber": True, "huber_delta": (0.2, 0.5, 0.3), "enable_atom_ener_coeff": True},
    "huber_norm": {**ALL, "use_huber": True, "huber_delta": 0.8, "f_use_norm": True},
    "mae": {**ALL, **PF, **GF, "loss_func": "mae"},
    "mae_norm": {**ALL, **PF, "loss_func": "mae", "f_use_norm": True, "relative_f": 0.3},
    "mae_of_huber": {**ALL, **PF, "loss_func": "mae", "use_huber": True, "intensive_ener_virial": True},
    "huber_of_intensive": {**ALL, "use_huber": True, "huber_delta": 0.4, "intensive_ener_virial": True},
    "default_pf": {**PF, "use_default_pf": True},
}
LABELS = ("energy", "force", "virial", "atom_ener", "atom_pref", "atom_ener_coeff", "drdq")


def make_graph(atypes: list[list[int]]) -> Graph:
    """A graph without edges: what the loss reads of it."""
    flat = np.array([t for frame in atypes for t in frame], dtype=np.int64)
    return Graph(
        atype=flat,
        frame=np.repeat(np.arange(len(atypes)), [len(frame) for frame in atypes]),
        natoms=np.array([sum(t >= 0 for t in frame) for frame in atypes], dtype=np.int64),
        centre=np.zeros(0, np.int64), neighbour=np.zeros(0, np.int64), edge_vec=np.zeros((0, 3)),
        edge_mask=np.zeros(0, bool),
    )  # fmt: skip


def make_batch(atypes: list[list[int]], seed: int = 0) -> tuple[dict[str, Any], dict[str, Any], Graph]:
    rng, graph = np.random.default_rng(seed), make_graph(atypes)
    n, f = len(graph.frame), len(atypes)
    shapes = {"energy": (f, 1), "force": (n, 3), "virial": (f, 9), "atom_energy": (n, 1)}
    prediction = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    label_shapes = {
        "energy": (f, 1), "force": (n, 3), "virial": (f, 9), "atom_ener": (n, 1), "atom_ener_coeff": (n, 1),
        "drdq": (n, 3, 2),
    }  # fmt: skip
    labels = {name: rng.normal(size=shape) for name, shape in label_shapes.items()}
    labels["atom_pref"] = rng.uniform(0.5, 2.0, size=(n, 3))
    return prediction, labels, graph


def everything_found() -> dict[str, float]:
    return dict.fromkeys(LABELS, 1.0)


def by_loops(cfg: EnerLossConfig, p: dict, lab: dict, found: dict, graph: Graph, ratio: float) -> tuple[float, dict]:
    """The specification's table, frame by frame and atom by atom, in plain Python floats."""
    frames = [
        [i for i in range(len(graph.frame)) if graph.frame[i] == f and graph.atype[i] >= 0]
        for f in range(len(graph.natoms))
    ]
    real = [f for f, atoms in enumerate(frames) if atoms]
    mae, huber = cfg.loss_func == "mae", cfg.use_huber and cfg.loss_func == "mse"
    delta_e, delta_f, delta_v = cfg.deltas()

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    def residue(x: float, delta: float) -> float:
        if mae:
            return abs(x)
        if not huber:
            return x * x
        return x * x / 2 if abs(x) <= delta else delta * (abs(x) - delta / 2)

    def per_frame(diff: list[list[float]], delta: float) -> tuple[float, float]:
        value, metric = [], []
        for f in real:
            n = len(frames[f])
            if mae or huber:
                value.append(mean([residue(d / n, delta) for d in diff[f]]))
            else:
                value.append(mean([d * d for d in diff[f]]) / n ** (2 if cfg.intensive_ener_virial else 1))
            metric.append(mean([abs(d / n) if mae else (d / n) ** 2 for d in diff[f]]))
        return mean(value), mean(metric) if mae else math.sqrt(mean(metric))

    def per_atom(function: Any) -> float:
        return mean([mean([function(i) for i in frames[f]]) for f in real])

    plain = p["force"] - lab["force"]
    rel = plain.copy()
    if cfg.relative_f is not None:
        for i in range(len(rel)):
            rel[i] = plain[i] / (math.sqrt(sum(x * x for x in lab["force"][i])) + cfg.relative_f)
    energy = p["energy"]
    if cfg.enable_atom_ener_coeff:
        coeff = lab["atom_ener_coeff"] if found["atom_ener_coeff"] else np.ones_like(lab["atom_ener_coeff"])
        energy = np.array([[sum(coeff[i, 0] * p["atom_energy"][i, 0] for i in atoms)] for atoms in frames])
    terms: dict[str, tuple[float, float, float]] = {}
    terms["e"] = (*per_frame((energy - lab["energy"]).tolist(), delta_e), found["energy"])
    terms["v"] = (*per_frame((p["virial"] - lab["virial"]).tolist(), delta_v), found["virial"])
    norm = [math.sqrt(sum(x * x for x in row)) for row in plain.tolist()]
    if cfg.f_use_norm:
        value = per_atom(lambda i: residue(norm[i], delta_f))
    else:
        value = per_atom(lambda i: mean([residue(x, delta_f) for x in rel[i]]))
    metric = value if mae else math.sqrt(per_atom(lambda i: mean([x * x for x in rel[i]])))
    terms["f"] = (value, metric, found["force"])
    de = (p["atom_energy"] - lab["atom_ener"])[:, 0]
    value = per_atom(lambda i: residue(de[i], delta_e))
    terms["ae"] = (value, value if mae else math.sqrt(per_atom(lambda i: de[i] ** 2)), found["atom_ener"])
    w, found_w = lab["atom_pref"], found["atom_pref"]
    if cfg.use_default_pf and not found_w:
        w, found_w = np.ones_like(w), 1.0
    value = per_atom(lambda i: mean([w[i, a] * (abs(rel[i, a]) if mae else rel[i, a] ** 2) for a in range(3)]))
    terms["pf"] = (value, value if mae else math.sqrt(value), found_w * found["force"])
    q = [
        [sum(lab["drdq"][i, a, j] * plain[i, a] for i in atoms for a in range(3)) for j in range(2)] for atoms in frames
    ]
    value = mean([mean([x * x for x in q[f]]) for f in real])
    terms["gf"] = (value, math.sqrt(value), found["drdq"] * found["force"])
    total, metrics = 0.0, {}
    for term, (value, metric, present) in terms.items():
        start, limit = getattr(cfg, f"start_pref_{term}"), getattr(cfg, f"limit_pref_{term}")
        if start == 0 and limit == 0:
            continue
        total += (limit + (start - limit) * ratio) * present * value
        kind = "rmse" if not mae or term == "gf" else "mae"
        metrics[f"{kind}_{term}"] = metric if present else math.nan
    return total, {**metrics, "rmse": math.sqrt(total)}


def assert_result(result: tuple[Any, dict], expected: tuple[float, dict], rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(float(result[0]), expected[0], rtol=rtol)
    assert sorted(result[1]) == sorted(expected[1])
    for name, value in expected[1].items():
        np.testing.assert_allclose(float(result[1][name]), value, rtol=rtol, err_msg=name)


FRAMES = [[0, 1, 1], [1], [0, -1, 1, -1], [-1, -1], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_loops(name: str) -> None:
    cfg = EnerLossConfig(**OPTIONS[name])
    prediction, labels, graph = make_batch(FRAMES)
    loss = build_loss(cfg, 1e-3)
    expected = by_loops(cfg, prediction, labels, everything_found(), graph, 0.37)
    result = loss(prediction, labels, everything_found(), graph, 0.37e-3)
    assert_result(result, expected)
    assert tuple(sorted(result[1])) == loss.metrics
    assert result[0].dtype == np.float64 and result[0].shape == ()


@pytest.mark.parametrize("missing", LABELS)
@pytest.mark.parametrize("name", ["mse", "coeff", "mae", "default_pf"])
def test_missing_label_is_nan_and_adds_nothing(name: str, missing: str) -> None:
    cfg = EnerLossConfig(**OPTIONS[name])
    prediction, labels, graph = make_batch(FRAMES)
    found = {**everything_found(), missing: 0.0}
    expected = by_loops(cfg, prediction, labels, found, graph, 0.5)
    loss = EnerLoss(cfg, 2.0)
    assert_result(loss(prediction, labels, found, graph, 1.0), expected)
    absent = {key: value for key, value in labels.items() if key != missing}
    if missing == "atom_ener_coeff" and cfg.enable_atom_ener_coeff:
        # Without the array the model's own sum is used, which these random numbers do not obey.
        atoms = np.array([[prediction["atom_energy"][(graph.frame == f) & (graph.atype >= 0)].sum()] for f in range(5)])
        prediction = {**prediction, "energy": atoms}
    assert_result(loss(prediction, absent, found, graph, 1.0), expected)
    del found[missing]
    assert_result(loss(prediction, absent, found, graph, 1.0), expected)


@pytest.mark.parametrize("kind", [np.float32, np.asarray, np.float64])
def test_found_and_rate_of_numpy_types(kind: Any) -> None:
    prediction, labels, graph = make_batch([[0, 1]])
    loss = EnerLoss(EnerLossConfig(), 1.0)
    plain = loss(prediction, labels, everything_found(), graph, 0.5)
    other = loss(prediction, labels, {name: kind(1.0) for name in LABELS}, graph, kind(0.5))
    assert_result(other, (float(plain[0]), {k: float(v) for k, v in plain[1].items()}))


@pytest.mark.parametrize("name", OPTIONS)
def test_array_api_strict(name: str) -> None:
    cfg, xp = EnerLossConfig(**OPTIONS[name]), array_api_strict
    prediction, labels, graph = make_batch(FRAMES)
    expected = by_loops(cfg, prediction, labels, everything_found(), graph, 0.37)
    with xp.ArrayAPIStrictFlags(data_dependent_shapes=False, boolean_indexing=False):
        strict = graph.replace(**{k: xp.asarray(getattr(graph, k)) for k in ("atype", "frame", "natoms")})
        result = EnerLoss(cfg, 1.0)(
            {k: xp.asarray(v) for k, v in prediction.items()}, {k: xp.asarray(v) for k, v in labels.items()},
            {k: xp.asarray(1.0) for k in LABELS}, strict, xp.asarray(0.37),
        )  # fmt: skip
        assert isinstance(result[0], type(xp.asarray(0.0)))
        assert_result(result, expected)


@pytest.mark.parametrize("frames", [[], [[]], [[-1]], [[-1, -1], []]])
@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_to_learn_from_is_zero(name: str, frames: list[list[int]]) -> None:
    prediction, labels, graph = make_batch(frames)
    total, metrics = EnerLoss(EnerLossConfig(**OPTIONS[name]), 1.0)(prediction, labels, everything_found(), graph, 1.0)
    assert float(total) == 0.0
    assert all(float(value) == 0.0 for value in metrics.values())


def pad(rng: Any, x: np.ndarray, rows: int, garbage: float) -> np.ndarray:
    return np.concatenate([x, np.full((rows, *x.shape[1:]), garbage)])


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(OPTIONS)),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    atoms=st.integers(0, 3),
    frames=st.integers(0, 2),
    garbage=st.sampled_from([0.0, 1e30, math.nan]),
    seed=st.integers(0, 10),
)
def test_padding_changes_nothing(
    name: str, sizes: list[int], atoms: int, frames: int, garbage: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    atypes = [rng.integers(0, 2, size).tolist() for size in sizes]
    prediction, labels, graph = make_batch(atypes, seed)
    loss = EnerLoss(EnerLossConfig(**OPTIONS[name]), 1.0)
    plain = loss(prediction, labels, everything_found(), graph, 0.3)
    total_frames = len(sizes) + frames
    padded = graph.replace(
        atype=np.concatenate([graph.atype, np.full(atoms, -1)]),
        frame=np.concatenate([graph.frame, rng.integers(0, total_frames, atoms)]),
        natoms=np.concatenate([graph.natoms, np.zeros(frames, np.int64)]),
    )
    per_frame = {"energy", "virial"}

    def padding(values: dict[str, Any]) -> dict[str, Any]:
        return {k: pad(rng, v, frames if k in per_frame else atoms, garbage) for k, v in values.items()}

    with np.errstate(all="ignore"):
        other = loss(padding(prediction), padding(labels), everything_found(), padded, 0.3)
    assert_result(other, (float(plain[0]), {k: float(v) for k, v in plain[1].items()}))


def test_frames_of_different_sizes_weigh_equally() -> None:
    loss = EnerLoss(EnerLossConfig(), 1.0)
    parts = []
    batches = [make_batch([[0] * size], seed=size) for size in (1, 2, 7)]
    for prediction, labels, graph in batches:
        parts.append(float(loss(prediction, labels, everything_found(), graph, 1.0)[0]))
    joined = [{k: np.concatenate([b[j][k] for b in batches]) for k in batches[0][j]} for j in (0, 1)]
    total, _ = loss(joined[0], joined[1], everything_found(), make_graph([[0], [0] * 2, [0] * 7]), 1.0)
    np.testing.assert_allclose(float(total), np.mean(parts), rtol=1e-13)


def golden_cases() -> dict[str, Any]:
    with np.load(GOLDEN) as data:
        return json.loads(str(data["cases"]))


@pytest.mark.parametrize("name", golden_cases())
def test_golden(name: str) -> None:
    """Exactly the numbers of DeePMD-kit, for the first step of its training goldens."""
    case = golden_cases()[name]
    with np.load(GOLDEN) as data:
        mine = {key[len(name) + 1 :]: data[key] for key in data if key.startswith(name + "/")}
    graph = make_graph(mine["atype"].tolist())
    n = graph.atype.size
    shapes = {"energy": (-1, 1), "virial": (-1, 9), "force": (n, 3), "atom_pref": (n, 3)}
    parts: dict[str, dict[str, Any]] = {"prediction": {}, "label": {}}
    for key, value in mine.items():
        if "/" in key:
            part, quantity = key.split("/")
            parts[part][quantity] = value.reshape(shapes.get(quantity, (n, 1)))
    loss = build_loss(EnerLossConfig.from_dict(case["loss"]), case["start_lr"])
    found = dict.fromkeys(parts["label"], 1.0)
    assert_result(
        loss(parts["prediction"], parts["label"], found, graph, case["lr"]),
        (case["value"], case["metrics"]),
        rtol=1e-10,
    )


def test_a_prefactor_that_fades_still_acts() -> None:
    loss = EnerLoss(EnerLossConfig(start_pref_e=1.0, limit_pref_e=0.0, start_pref_f=0.0, limit_pref_f=2.0), 1.0)
    assert loss.terms == ("e", "f") and loss.needs("energy") and loss.needs("force") and not loss.needs("virial")
    prediction, labels, graph = make_batch([[0, 0]])
    at_start = loss(prediction, labels, everything_found(), graph, 1.0)[0]
    np.testing.assert_allclose(at_start, (prediction["energy"] - labels["energy"])[0, 0] ** 2 / 2)


def test_labels_and_outputs() -> None:
    loss = EnerLoss(EnerLossConfig(**OPTIONS["mse"]), 1.0)
    assert loss.outputs == ("energy", "force", "virial", "atom_energy")
    by_name = {label.name: label for label in loss.labels}
    assert set(by_name) == {"energy", "force", "virial", "atom_ener", "atom_pref", "drdq"}
    assert by_name["drdq"].shape == (3, 2) and by_name["energy"].high_precision
    assert by_name["atom_pref"].repeat == 3 and by_name["atom_pref"].default == 1.0 and by_name["atom_pref"].required
    lenient = EnerLoss(EnerLossConfig(**OPTIONS["default_pf"], enable_atom_ener_coeff=True), 1.0)
    assert not lenient.needs("atom_pref") and not lenient.needs("atom_ener_coeff") and lenient.needs("force")
    assert EnerLoss(EnerLossConfig(**OPTIONS["coeff"]), 1.0).outputs == ("energy", "force", "virial", "atom_energy")


def test_config() -> None:
    assert EnerLossConfig in CONFIGS and EnerLossConfig.key == "ener" and EnerLossConfig.aliases == ("ener_hess",)
    default = EnerLossConfig()
    assert default.to_dict()["type"] == "ener" and EnerLossConfig.from_dict(default.to_dict()) == default
    assert default.prefactors("e") == (0.02, 1.0) and default.prefactors("f") == (1000.0, 1.0)
    assert all(field.metadata["option"].doc for field in EnerLossConfig.options().values())
    assert hash(EnerLoss(default, 1.0)) == hash(EnerLoss(EnerLossConfig(), 1.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_huber": True, "start_pref_pf": 1.0}, "start_pref_pf"),
        ({"use_huber": True, "limit_pref_h": 1.0}, "start_pref_h"),
        ({"use_huber": True, "limit_pref_gf": 1.0, "numb_generalized_coord": 1}, "start_pref_gf"),
        ({"use_huber": True, "relative_f": 1.0}, "relative_f"),
        ({"f_use_norm": True}, "f_use_norm needs"),
        ({"start_pref_gf": 1.0}, "numb_generalized_coord"),
        ({"huber_delta": (0.1, 0.2)}, "or three"),
        ({"huber_delta": -0.1}, "above 0"),
        ({"huber_delta": (0.1, 0.0, 0.1)}, "above 0"),
        ({"start_pref_e": -1.0}, "start_pref_e"),
        ({"start_pref_e": math.nan}, "finite"),
        ({"limit_pref_f": math.inf}, "finite"),
        ({"relative_f": -0.5}, "relative_f"),
        ({"loss_func": "rmse"}, "mse"),
        ({"numb_generalized_coord": -1}, "numb_generalized_coord"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_loss(EnerLossConfig(**options), 1e-3)


@pytest.mark.parametrize("start_lr", [0.0, -1.0, math.nan, math.inf])
def test_bad_start_lr(start_lr: float) -> None:
    with pytest.raises(InputError, match="start_lr"):
        build_loss(EnerLossConfig(), start_lr)


def test_missing_output() -> None:
    prediction, labels, graph = make_batch([[0]])
    del prediction["virial"]
    with pytest.raises(InputError, match="'virial'"):
        EnerLoss(EnerLossConfig(limit_pref_v=1.0), 1.0)(prediction, labels, everything_found(), graph, 1.0)


def test_validation_metrics() -> None:
    cfg = EnerLossConfig(start_pref_v=1.0)
    for quantity, kind in itertools.product("EF", ("MAE", "rmse")):
        cfg.check_metric(f"{quantity}:{kind}")
    with pytest.raises(InputError, match="both not 0"):
        cfg.check_metric("V:MAE")
    with pytest.raises(InputError, match="legal are"):
        cfg.check_metric("FM:MAE")
