"""Losses of densities of states, tensors, properties and spins against formulas written out here, in NumPy and torch."""

from __future__ import annotations

import math
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch

from dpmodel.config import Config
from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.graph import Graph
from dpmodel.input import load_input
from dpmodel.losses import (
    DOSLossConfig,
    EnerSpinLossConfig,
    PropertyLossConfig,
    TensorLossConfig,
    TermLoss,
    build_loss,
)

Numbers = dict[str, np.ndarray]

FRAMES = [[0, 1, 1], [1], [0, -1, 1, -1], [-1, -1], [0, 0, 1, 1, 0]]
REAL = [[0, 1, 2], [3], [4, 6], [], [10, 11, 12, 13, 14]]
"""Rows of the atoms that count."""
NROWS, RATIO = 15, 0.37
"""RATIO: learning rate over its start."""
SIZE = 4
DOS = Output(name="dos", atomic="atom_dos", reduced="dos", shape=(SIZE,), differentiable=False, loss="dos")
DIPOLE = Output(
    name="dipole", atomic="dipole", reduced="global_dipole", shape=(3,), differentiable=False, loss="tensor"
)
POLAR = Output(
    name="polarizability", atomic="polar", reduced="global_polar", shape=(3, 3), differentiable=False, loss="tensor"
)
GAP = Output(name="gap", atomic="atom_gap", reduced="gap", shape=(2,), differentiable=False, intensive=True)
MASS = Output(name="mass", atomic="atom_mass", reduced="mass", shape=(2,), differentiable=False)

XP: dict[str, Any] = {
    "numpy": np.asarray,
    "strict": array_api_strict.asarray,
    "torch": lambda x: torch.as_tensor(np.asarray(x)),
}


def make_graph() -> Graph:
    """What losses read of a graph: no edges."""
    nothing = np.zeros(0, np.int64)
    return Graph(
        atype=np.array([t for frame in FRAMES for t in frame]),
        frame=np.repeat(np.arange(len(FRAMES)), [len(frame) for frame in FRAMES]),
        natoms=np.array([len(rows) for rows in REAL]), centre=nothing, neighbour=nothing, edge_vec=np.zeros((0, 3)),
        edge_mask=nothing > 0,
    )  # fmt: skip


def make(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Numbers:
    """Random numbers by name: (frames, ...) or (atoms, ...). NaN stands where nothing counts."""
    rng, counted = np.random.default_rng(seed), sorted(i for rows in REAL for i in rows)
    out = {}
    for name, shape in shapes.items():
        array = np.full(shape, np.nan)
        rows = counted if shape[0] == NROWS else [f for f, atoms in enumerate(REAL) if atoms]
        array[rows] = rng.normal(size=(len(rows), *shape[1:]))
        out[name] = array
    return out


def run(loss: TermLoss, prediction: Numbers, labels: Numbers, found: dict[str, float], kind: str = "numpy") -> Any:
    """The loss and its metrics as floats, computed by a library."""
    convert, graph = XP[kind], make_graph()
    graph = graph.replace(**{name: convert(getattr(graph, name)) for name in ("atype", "frame", "natoms")})
    inside = [{name: convert(value) for name, value in part.items()} for part in (prediction, labels)]
    copies = {name: value.copy() for name, value in labels.items()}
    with np.errstate(all="ignore"):
        total, metrics = loss(*inside, found, graph, RATIO * loss.start_lr)
    for name, value in copies.items():  # labels are not changed in place
        np.testing.assert_array_equal(np.asarray(inside[1][name]), value)
    assert total.shape == () and tuple(sorted(metrics)) == loss.metrics
    return float(total), {name: float(value) for name, value in metrics.items()}


def check(loss: TermLoss, prediction: Numbers, labels: Numbers, total: float, metrics: dict[str, float]) -> None:
    """All libraries give the expected numbers; without labels there is nothing but NaN and a loss of 0."""
    for kind in XP:
        found = {label.name: 1.0 for label in loss.labels}
        value, shown = run(loss, prediction, labels, found, kind)
        np.testing.assert_allclose(value, total, rtol=1e-12, err_msg=kind)
        assert sorted(shown) == sorted(metrics)
        for name, expected in metrics.items():
            np.testing.assert_allclose(shown[name], expected, rtol=1e-12, err_msg=f"{kind}: {name}")
        for missing in (labels, {}):
            value, shown = run(loss, prediction, missing, dict.fromkeys(found, 0.0), kind)
            assert value == 0.0 and shown.pop("rmse", 0.0) == 0.0
            assert shown and all(math.isnan(number) for number in shown.values())
    check_gradient(loss, prediction, labels)


def check_gradient(loss: TermLoss, prediction: Numbers, labels: Numbers) -> None:
    """Finite with NaN behind the padding, and exactly 0 where no label was found."""
    graph = make_graph()
    graph = graph.replace(**{name: torch.as_tensor(getattr(graph, name)) for name in ("atype", "frame", "natoms")})
    given = {name: torch.as_tensor(value) for name, value in labels.items()}
    for present in (1.0, 0.0):
        inputs = {k: torch.tensor(v, requires_grad=v.dtype == np.float64) for k, v in prediction.items()}
        total, _ = loss(inputs, given, {label.name: present for label in loss.labels}, graph, RATIO * loss.start_lr)
        total.backward()
        slopes = [inputs[name].grad for name in loss.outputs if inputs[name].grad is not None]
        assert slopes and all(bool(torch.all(torch.isfinite(slope))) for slope in slopes)
        assert any(bool(torch.any(slope != 0)) for slope in slopes) == (present > 0)


def over_atoms(values: np.ndarray) -> float:
    """< mean over atoms and components of a frame >, frames with atoms."""
    return float(np.mean([np.mean(values[rows]) for rows in REAL if rows]))


def over_frames(values: np.ndarray) -> float:
    return float(np.mean([np.mean(values[f]) for f, rows in enumerate(REAL) if rows]))


NATOMS = np.mean([len(rows) for rows in REAL if rows])


def pref(config: Any, term: str) -> float:
    start, limit = getattr(config, f"start_pref_{term}"), getattr(config, f"limit_pref_{term}")
    return float(limit + (start - limit) * RATIO)


# --- densities of states ----------------------------------------------------------------------------------

NO_DOS = {"start_pref_ados": 0.0, "limit_pref_ados": 0.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_pref_dos": 2.0, **NO_DOS},
        {"limit_pref_cdf": 2.0, **NO_DOS},
        {"start_pref_dos": 1.0, "start_pref_cdf": 3.0, "limit_pref_cdf": 0.5, "limit_pref_acdf": 4.0},
    ],
)
def test_dos(options: dict[str, float]) -> None:
    config = DOSLossConfig(**options)
    loss = build_loss(config, 0.02, DOS)
    shapes: dict[str, tuple[int, ...]] = {"dos": (len(FRAMES), SIZE), "atom_dos": (NROWS, SIZE)}
    p, y = make(shapes, 1), make(shapes, 2)
    of_frames, of_atoms = p["dos"] - y["dos"], p["atom_dos"] - y["atom_dos"]
    values = {
        "dos": (over_frames(of_frames**2), "rmse_global_dos"),
        "cdf": (over_frames(np.cumsum(of_frames, axis=1) ** 2), "rmse_global_cdf"),
        "ados": (over_atoms(of_atoms**2), "rmse_local_dos"),
        "acdf": (over_atoms(np.cumsum(of_atoms, axis=1) ** 2), "rmse_local_cdf"),
    }
    active = [term for term in values if config.prefactors(term) != (0.0, 0.0)]
    assert loss.terms == tuple(active)
    total = sum(pref(config, term) * values[term][0] for term in active)
    metrics = {
        values[t][1]: math.sqrt(values[t][0]) / (NATOMS if t in ("dos", "cdf") else 1.0) for t in active
    }  # fmt: skip
    check(loss, p, y, total, {**metrics, "rmse": math.sqrt(total)})
    labels = {label.name: (label.atomic, label.required) for label in loss.labels}
    expected = {}
    if {"dos", "cdf"} & set(active):
        expected["dos"] = (False, True)
    if {"ados", "acdf"} & set(active):
        expected["atom_dos"] = (True, True)
    assert labels == expected


def test_one_label_of_two_is_missing() -> None:
    loss = build_loss(DOSLossConfig(start_pref_dos=1.0, limit_pref_dos=1.0), 0.02, DOS)
    shapes: dict[str, tuple[int, ...]] = {"dos": (len(FRAMES), SIZE), "atom_dos": (NROWS, SIZE)}
    p, y = make(shapes, 1), make(shapes, 2)
    total, metrics = run(loss, p, y, {"dos": 0.0, "atom_dos": 1.0})
    np.testing.assert_allclose(total, over_atoms((p["atom_dos"] - y["atom_dos"]) ** 2), rtol=1e-12)
    assert math.isnan(metrics["rmse_global_dos"]) and metrics["rmse_local_dos"] > 0.0


# --- tensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [DIPOLE, POLAR], ids=["dipole", "polar"])
@pytest.mark.parametrize(("of_frames", "of_atoms"), [(1.0, 0.0), (0.0, 2.0), (0.3, 0.7)])
@pytest.mark.parametrize("weighted", [False, True])
def test_tensor(output: Output, of_frames: float, of_atoms: float, weighted: bool) -> None:
    config = TensorLossConfig(pref=of_frames, pref_atomic=of_atoms, enable_atomic_weight=weighted)
    loss = build_loss(config, 0.02, output)
    k, f = math.prod(output.shape), len(FRAMES)
    p = make({output.reduced: (f, *output.shape), output.atomic: (NROWS, *output.shape)}, 1)
    y = make(
        {output.name: (f, *output.shape), f"atom_{output.name}": (NROWS, *output.shape), "atomic_weight": (NROWS, 1)}, 2
    )
    d_frames = (p[output.reduced] - y[output.name]).reshape(f, k)
    d_atoms = (p[output.atomic] - y[f"atom_{output.name}"]).reshape(NROWS, k)
    if weighted:
        d_atoms = d_atoms * y["atomic_weight"]
    total, metrics = 0.0, {}
    if of_frames:
        value = over_frames(d_frames**2)
        total, metrics = of_frames * value, {f"rmse_global_{output.atomic}": math.sqrt(value) / NATOMS}
    if of_atoms:
        value = over_atoms(d_atoms**2)
        total, metrics[f"rmse_local_{output.atomic}"] = total + of_atoms * value, math.sqrt(value)
    check(loss, p, y, total, {**metrics, "rmse": math.sqrt(total)})
    needed = {label.name for label in loss.labels if label.required}
    assert needed == {*([output.name] if of_frames else []), *([f"atom_{output.name}"] if of_atoms else [])}
    assert any(label.name == "atomic_weight" for label in loss.labels) == (weighted and of_atoms > 0)


def test_atoms_without_weights_count_once() -> None:
    loss = build_loss(TensorLossConfig(pref=0.0, pref_atomic=1.0, enable_atomic_weight=True), 1.0, DIPOLE)
    p = make({"global_dipole": (len(FRAMES), 3), "dipole": (NROWS, 3)}, 1)
    y = make({"atom_dipole": (NROWS, 3), "atomic_weight": (NROWS, 1)}, 2)
    expected = over_atoms((p["dipole"] - y["atom_dipole"]) ** 2)
    for labels in (y, {"atom_dipole": y["atom_dipole"]}):
        total, _ = run(loss, p, labels, {"atom_dipole": 1.0, "atomic_weight": 0.0})
        np.testing.assert_allclose(total, expected, rtol=1e-12)


# --- properties -------------------------------------------------------------------------------------------

KINDS = ("smooth_mae", "mae", "mse", "rmse", "mape")


class Fitted:
    """Of a model: what its statistics found."""

    def __init__(self, *deviation: float) -> None:
        self.out_std = np.array([deviation] * 2)


@pytest.mark.parametrize("output", [GAP, MASS], ids=["intensive", "extensive"])
@pytest.mark.parametrize("kind", KINDS)
def test_property(kind: str, output: Output) -> None:
    beta, scale = 0.8, np.array([0.5, 2.0])
    config = PropertyLossConfig(loss_func=kind, metric=KINDS, beta=beta)
    loss = build_loss(config, 0.02, output).bound(Fitted(*scale))
    p, y = make({output.name: (len(FRAMES), 2)}, 1), make({output.name: (len(FRAMES), 2)}, 2)
    rows = [f for f, atoms in enumerate(REAL) if atoms]
    size = np.ones((len(rows), 1)) if output.intensive else np.array([[len(REAL[f])] for f in rows])
    x, label = p[output.name][rows] / size, y[output.name][rows] / size
    plain, d = x - label, (x - label) / scale

    def smooth(r: np.ndarray) -> np.ndarray:
        return np.where(np.abs(r) < beta, r * r / (2 * beta), np.abs(r) - beta / 2)

    assert (np.abs(d) < beta).any() and (np.abs(d) > beta).any()
    relative = np.abs(plain / (label + 1e-3))
    totals = {
        "smooth_mae": np.sum(smooth(d)), "mae": np.sum(np.abs(d)), "mse": np.sum(d**2), "rmse": math.sqrt(np.mean(d**2)),
        "mape": np.mean(relative),
    }  # fmt: skip
    metrics = {
        "smooth_mae": np.mean(smooth(plain)), "mae": np.mean(np.abs(plain)), "mse": np.mean(plain**2),
        "rmse": math.sqrt(np.mean(plain**2)), "mape": np.mean(relative),
    }  # fmt: skip
    for name in XP:
        value, shown = run(loss, p, y, {output.name: 1.0}, name)
        np.testing.assert_allclose(value, totals[kind], rtol=1e-12)
        for metric, expected in metrics.items():
            np.testing.assert_allclose(shown[metric], expected, rtol=1e-12, err_msg=metric)
        for missing in (y, {}):
            value, shown = run(loss, p, missing, {output.name: 0.0}, name)
            assert value == 0.0 and all(math.isnan(number) for number in shown.values())
    check_gradient(loss, p, y)


def test_property_shows_what_was_asked_for() -> None:
    loss = build_loss(PropertyLossConfig(metric=("rmse",)), 0.02, GAP)
    assert loss.metrics == ("rmse",) and loss.terms == ("property",) and loss.outputs == ("gap",)
    p, y = make({"gap": (len(FRAMES), 2)}, 1), make({"gap": (len(FRAMES), 2)}, 2)
    plain = over_frames((p["gap"] - y["gap"]) ** 2)
    np.testing.assert_allclose(run(loss, p, y, {"gap": 1.0})[1]["rmse"], math.sqrt(plain), rtol=1e-12)


def test_a_property_that_does_not_vary() -> None:
    with pytest.raises(InputError, match=r"labels of 'gap' are the same in all frames in some component"):
        build_loss(PropertyLossConfig(), 0.02, GAP).bound(Fitted(1.0, 0.0))


# --- spins ------------------------------------------------------------------------------------------------

EVERYTHING = {"start_pref_v": 0.5, "limit_pref_v": 1.0, "start_pref_ae": 2.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        EVERYTHING,
        {**EVERYTHING, "loss_func": "mae"},
        {**EVERYTHING, "intensive_ener_virial": True},
        {"relative_f": 0.4},
        {"enable_atom_ener_coeff": True},
        {"start_pref_fm": 0.0, "limit_pref_fm": 0.0},
    ],
)
@pytest.mark.parametrize("magnetic", ["some", "none"])
def test_spin(options: dict[str, Any], magnetic: str) -> None:
    config = EnerSpinLossConfig(**options)
    loss = build_loss(config, 0.02)
    f = len(FRAMES)
    p = make(
        {"energy": (f, 1), "force": (NROWS, 3), "force_mag": (NROWS, 3), "virial": (f, 9), "atom_energy": (NROWS, 1)}, 1
    )
    types = np.array([t for frame in FRAMES for t in frame])
    p["mask_mag"] = ((types == 0) & (magnetic == "some")).astype(np.int32)[:, None]
    y = make(
        {"energy": (f, 1), "force": (NROWS, 3), "force_mag": (NROWS, 3), "virial": (f, 9), "atom_ener": (NROWS, 1),
         "atom_ener_coeff": (NROWS, 1)}, 2,
    )  # fmt: skip
    natoms = np.array([[max(1, len(rows))] for rows in REAL])
    mae, power = config.loss_func == "mae", 2 if config.intensive_ener_virial else 1

    def extensive(d: np.ndarray) -> tuple[float, float]:
        if mae:
            return (over_frames(np.abs(d / natoms)),) * 2
        return over_frames(d**2 / natoms**power), math.sqrt(over_frames((d / natoms) ** 2))

    def atoms(d: np.ndarray) -> tuple[float, float]:
        value = over_atoms(np.abs(d) if mae else d**2)
        return value, value if mae else math.sqrt(value)

    energy = p["energy"]
    if config.enable_atom_ener_coeff:
        energy = np.array([[sum((y["atom_ener_coeff"] * p["atom_energy"])[rows, 0])] for rows in REAL])
    d_force = p["force"] - y["force"]
    if config.relative_f is not None:
        d_force = d_force / (np.linalg.norm(y["force"], axis=1, keepdims=True) + config.relative_f)
    chosen = [i for rows in REAL for i in rows if p["mask_mag"][i, 0]]
    d_mag = (p["force_mag"] - y["force_mag"])[chosen]
    of_spins = float(np.sum(np.abs(d_mag) if mae else d_mag**2)) / (3 * max(1, len(chosen)))
    values = {
        "e": extensive(energy - y["energy"]), "v": extensive(p["virial"] - y["virial"]), "fr": atoms(d_force),
        "ae": atoms(p["atom_energy"] - y["atom_ener"]), "fm": (of_spins, of_spins if mae else math.sqrt(of_spins)),
    }  # fmt: skip
    total, metrics = 0.0, {}
    for term, (value, metric) in values.items():
        if config.prefactors(term) != (0.0, 0.0):
            total += pref(config, term) * value
            metrics[f"{'mae' if mae else 'rmse'}_{term}"] = metric
    assert {f"{'mae' if mae else 'rmse'}_{term}" for term in loss.terms} == set(metrics)
    check(loss, p, y, total, {**metrics, "rmse": math.sqrt(total)})
    assert ("mask_mag" in loss.outputs) == ("fm" in loss.terms) == loss.needs("force_mag")


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DOSLossConfig(**NO_DOS), "all prefactors are 0"),
        (DOSLossConfig(start_pref_cdf=-1.0), "start_pref_cdf must be a number of at least 0"),
        (DOSLossConfig(limit_pref_dos=math.nan), "limit_pref_dos must be finite"),
        (TensorLossConfig(pref=0.0, pref_atomic=0.0), "pref and pref_atomic are both 0"),
        (TensorLossConfig(pref=-1.0, pref_atomic=1.0), "pref must be a number of at least 0"),
        (TensorLossConfig(pref=1.0, pref_atomic=math.inf), "pref_atomic must be finite"),
        (PropertyLossConfig(metric=()), "metric must be at least one of smooth_mae"),
        (PropertyLossConfig(metric=("mae", "mae")), "none twice"),
        (PropertyLossConfig(metric=("r2",)), "metric must be at least one of"),
        (PropertyLossConfig(loss_func="huber"), r"loss_func must be one of \['smooth_mae'"),
        (PropertyLossConfig(beta=0.0), "beta must be a number above 0"),
        (EnerSpinLossConfig(loss_func="rmse"), r"loss_func must be one of \['mse', 'mae'\]"),
        (EnerSpinLossConfig(start_pref_fm=-1.0), "start_pref_fm must be a number of at least 0"),
        (EnerSpinLossConfig(relative_f=0.0), "relative_f must be a number above 0"),
    ],
)
def test_bad_options(config: Config, words: str) -> None:
    output = {"dos": DOS, "tensor": DIPOLE, "property": GAP}.get(config.key or "")
    with pytest.raises(InputError, match=words):
        build_loss(config, 1e-3, output)


FITTINGS = {"dos": "dos", "tensor": "dipole", "property": "property"}


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"type": "tensor", "pref": 1.0}, r"loss\.pref_atomic"),
        ({"type": "tensor", "pref_atomic": 1.0}, r"loss\.pref:"),
        ({"type": "property", "metrics": ["mae"]}, r"loss\.metrics: unknown key; did you mean .metric"),
        ({"type": "dos", "start_pref_ddos": 1.0}, r"loss\.start_pref_ddos: unknown key; did you mean .start_pref_"),
        ({"type": "dos", "loss_func": "mae"}, r"loss\.loss_func: unknown key"),
        (
            {"type": "ener_spin", "start_pref_f": 1.0},
            r"loss\.start_pref_f: unknown key; .start_pref_f. belongs to loss of type .ener",
        ),
    ],
)
def test_bad_sections(loss: dict[str, Any], words: str) -> None:
    model: dict[str, Any] = {
        "type_map": ["O"], "descriptor": {"type": "se_e2_a", "sel": [4]}, "fitting_net": {"type": FITTINGS.get(loss["type"], "ener")},
    }  # fmt: skip
    if loss["type"] == "property":
        model["fitting_net"]["property_name"] = "gap"
    if loss["type"] == "ener_spin":
        model["spin"] = {"use_spin": [True], "virtual_scale": 0.3}
    training = {"training_data": {"systems": ["data"]}, "numb_steps": 1}
    with pytest.raises(InputError, match=words):
        load_input(
            {"model": model, "loss": loss, "learning_rate": {"start_lr": 1e-3, "stop_lr": 1e-5}, "training": training}
        )


def test_a_loss_that_nobody_knows() -> None:
    class Other(Config, key="other"):
        """Of no model."""

    with pytest.raises(InputError, match="no loss is known for Other"):
        build_loss(Other(), 1e-3)


def test_missing_outputs() -> None:
    shapes: dict[str, tuple[int, ...]] = {"dos": (len(FRAMES), SIZE)}
    with pytest.raises(InputError, match="the loss needs the model output 'atom_dos'"):
        run(
            build_loss(DOSLossConfig(), 1.0, DOS),
            make(shapes),
            make({**shapes, "atom_dos": (NROWS, SIZE)}),
            {"atom_dos": 1.0},
        )
