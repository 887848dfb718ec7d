"""Any model that an input file can ask for: equal on every backend, with the derivatives and symmetries that it must have."""

from __future__ import annotations

import collections
import functools
import json
import random
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

import dpmodel
from dpmodel.backends.jax import evaluator as jax_evaluator
from dpmodel.config import Config, Option, option
from dpmodel.descriptors import CONFIGS as DESCRIPTORS
from dpmodel.descriptors.base import DescriptorConfig
from dpmodel.geometry import TruncationWarning
from dpmodel.geometry.neighbours import neighbour_pairs
from dpmodel.input import load_model
from dpmodel.models import LinearModel, Model, PairTable, StandardModel
from dpmodel.models.build import build_model
from dpmodel.models.config import LinearConfig, ModelConfig, PairTableConfig, SpinConfig
from dpmodel.potential import Potential

from .cases import randomise
from .random_models import KINDS, Options, RandomModel, Scene, draw_scene, models, rule_of
from .random_rules import ONE_VALUE, SMALLEST_SCALE, VECTORS
from .test_symmetry import orthogonal
from .tolerance import assert_close, distance

Outputs = dict[str, np.ndarray]
Arguments = dict[str, Any]

DERIVATIVES = ("force", "virial", "atom_virial", "force_mag")
RANKS = {
    "force": 1,
    "force_mag": 1,
    "virial": 2,
    "atom_virial": 2,
    "dipole": 1,
    "global_dipole": 1,
    "polar": 2,
    "global_polar": 2,
}
STEPS = (1e-5, 2e-6)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compilation takes 0.8 s per model instead of 1.3; without jit, JAX takes 9 s."""


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pair tables for one to three types."""
    folder = tmp_path_factory.mktemp("tables")
    rows = np.loadtxt(Path(__file__).parents[1] / "data" / "golden" / "zbl.txt")
    for n in (1, 2, 3):
        np.savetxt(folder / f"{n}.txt", rows[:, : 1 + n * (n + 1) // 2])
    return folder


# --- evaluation ----------------------------------------------------------------------------------------


def potential(model: Model, backend: str) -> Potential:
    with mock.patch.object(jax_evaluator.jax, "jit", functools.partial(jax.jit, compiler_options=QUICK)):
        return Potential.from_model(model, backend, device="cpu")


def arguments(drawn: RandomModel, model: Model) -> Arguments:
    """What `evaluate` takes."""
    atoms, (nf, na) = drawn.atoms, drawn.atoms.atype.shape
    rng = np.random.default_rng(atoms.seed + 2)
    found: Arguments = {
        "coord": atoms.coord, "atype": atoms.atype, "box": atoms.cell, "pbc": atoms.pbc, "spin": drawn.spin
    }  # fmt: skip
    if model.dim_fparam and (not model.has_default_fparam or rng.random() < 0.5):
        found["fparam"] = rng.normal(size=(nf, model.dim_fparam))
    if model.dim_aparam:
        found["aparam"] = rng.normal(size=(nf, na, model.dim_aparam))
    if model.takes_charge_spin and (model.default_charge_spin is None or rng.random() < 0.5):
        found["charge_spin"] = rng.integers(-2, 4, (nf, 2)).clip([-2, 0])
    return {key: value for key, value in found.items() if value is not None}


def evaluate(source: Potential, given: Arguments) -> tuple[Outputs, bool]:
    """Outputs, and whether neighbours were cut off."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TruncationWarning)
        found = source.evaluate(**given, atomic=True)
    assert all(issubclass(each.category, TruncationWarning) for each in caught)
    return found, bool(caught)


def check(drawn: RandomModel) -> None:
    """Everything that holds for every model."""
    note(f"{json.dumps(drawn.section)}, {drawn.atoms}")
    model = randomise(build_model(load_model(drawn.section), seed=drawn.atoms.seed), np.random.default_rng(2))
    single = any(np.asarray(value).dtype == np.float32 for value in model.state().values())
    assert_vectors(model)
    given = arguments(drawn, model)
    reference, cut = evaluate(potential(model, "numpy"), given)
    torch, _ = evaluate(potential(model, "pt"), given)
    assert drawn.truncates or not cut
    assert_close(torch, reference, 2e-5 if single else 1e-12)
    for backend in ("pt_expt", "jax"):
        assert_agree(evaluate(potential(model, backend), given)[0], torch, single)
    check_file(model, given, reference, torch)
    if not cut:  # neighbours at one distance make the cut arbitrary
        check_symmetries(model, given, torch, 2e-5 if single else 1e-10)
        if "force" in torch and not single and (is_smooth(model) or distance_to_cutoffs(model, drawn) > 1e-3):
            check_slopes(model, given, torch, np.random.default_rng(drawn.atoms.seed + 3))


def assert_agree(ours: Outputs, expected: Outputs, single: bool) -> None:
    assert ours.keys() == expected.keys()
    for derivative, tolerance in ((False, 1e-12), (True, 1e-11)):
        part = {key: value for key, value in expected.items() if (key in DERIVATIVES) is derivative}
        assert_within(ours, part, 2e-5 if single else tolerance, expected)


def assert_within(ours: Outputs, part: Outputs, tolerance: float, expected: Outputs) -> None:
    """As `assert_close`, but an atom and its virtual one pull at each other: forces add up to less than their shares."""
    shares = np.abs(expected.get("force_mag", np.zeros(1))).max() / SMALLEST_SCALE
    for key, value in part.items():
        own = max(1.0, shares / max(1.0, np.abs(value).max())) if key in DERIVATIVES else 1.0
        assert_close(ours, {key: value}, tolerance * own)


def assert_vectors(model: Model) -> None:
    """What the strategy believes of descriptors."""
    if isinstance(model, StandardModel):
        kind = model.descriptor.config
        keys = [part.key for part in getattr(kind, "parts", (kind,))]
        assert (model.descriptor.dim_emb > 0) == any(key in VECTORS for key in keys)


def check_file(model: Model, given: Arguments, reference: Outputs, torch: Outputs) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.dp"
        dpmodel.save(Potential.from_model(model, "numpy"), path)
        for backend, expected in (("numpy", reference), ("pt", torch)):
            found, _ = evaluate(dpmodel.load(path, backend, device="cpu"), given)
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[key], value) for key, value in expected.items())


# --- symmetries ----------------------------------------------------------------------------------------


def check_symmetries(model: Model, given: Arguments, expected: Outputs, tolerance: float) -> None:
    rng, source = np.random.default_rng(4), potential(model, "pt")
    q = orthogonal(rng, proper=bool(rng.integers(2)))
    turned = {key: value @ q.T if key in ("coord", "box", "spin") else value for key, value in given.items()}
    more = 1 if model.output().name == "dipole" else 0
    ranks = {key: rank + (more if key in DERIVATIVES else 0) for key, rank in RANKS.items()}
    wanted = {key: rotated(value, q, ranks.get(key, 0)) for key, value in expected.items()}
    assert_within(evaluate(source, turned)[0], wanted, tolerance, expected)

    box, (nf, na) = given.get("box"), given["atype"].shape
    images = rng.integers(-2, 3, (nf, na, 3)) * np.asarray(given["pbc"], float)
    moved = {**given, "coord": given["coord"] + [1.7, -3.1, 0.4] + (0.0 if box is None else images @ box)}
    assert_within(evaluate(source, moved)[0], expected, tolerance, expected)

    order = rng.permutation(na)
    per_atom = ("coord", "atype", "aparam", "spin")
    permuted = {key: value[:, order] if key in per_atom else value for key, value in given.items()}
    whole = (model.output().reduced, "virial")
    wanted = {key: value if key in whole else value[:, order] for key, value in expected.items()}
    assert_within(evaluate(source, permuted)[0], wanted, tolerance, expected)


def rotated(value: np.ndarray, q: np.ndarray, rank: int) -> np.ndarray:
    """Turn tensors of some rank, in whatever shape the last axes hold them."""
    lead = value.reshape(-1, *(3,) * rank)
    for axis in range(1, rank + 1):
        lead = np.moveaxis(np.tensordot(lead, q, axes=(axis, 1)), -1, axis)
    return lead.reshape(value.shape)


# --- derivatives ---------------------------------------------------------------------------------------


def is_smooth(model: Model) -> bool:
    """Whether energies have derivatives where a neighbour enters a cutoff."""
    if isinstance(model, LinearModel):
        return all(map(is_smooth, model.parts))
    return not isinstance(model, PairTable) and bool(model.graph_model.descriptor.is_smooth())


def distance_to_cutoffs(model: Model, drawn: RandomModel) -> float:
    """The smallest difference between a distance and a cutoff, Å."""
    requests = model.requests()
    cutoffs = {request.rcut for request in requests} | {r.angles.rcut for r in requests if r.angles is not None}
    scales = np.asarray(model.spin_scales or (0.0,) * drawn.atoms.ntypes)
    shift = None if drawn.spin is None else drawn.spin * scales[drawn.atoms.atype][:, :, None]
    found = [np.inf]
    for coord, atype, cell, _ in drawn.atoms.with_virtual(shift):
        pairs = neighbour_pairs(coord[atype >= 0], cell, drawn.atoms.pbc, max(cutoffs) + 0.01)
        found += [float(np.min(np.abs(pairs.distance - cutoff), initial=np.inf)) for cutoff in cutoffs]
    return min(found)


def check_slopes(model: Model, given: Arguments, outputs: Outputs, rng: np.random.Generator) -> None:
    """Some components of forces, virial and magnetic forces of one frame, by central differences.

    The shorter of two steps may be the one that fits: activations like relu have kinks.
    """
    k, na = int(rng.integers(len(given["coord"]))), given["coord"].shape[1]
    real = np.flatnonzero(given["atype"][k] >= 0)
    frame = {key: value[k] if isinstance(value, np.ndarray) else value for key, value in given.items()}
    moves: list[tuple[Arguments, np.ndarray]] = []
    for _ in range(3):
        atom, axis = rng.choice(real), rng.integers(3)
        move = np.zeros((na, 3))
        move[atom, axis] = 1.0
        moves.append(({"coord": move}, outputs["force"][k, atom, ..., axis]))
        if "spin" in frame:
            moves.append(({"spin": move}, outputs["force_mag"][k, atom, ..., axis]))
        a, b = rng.integers(3, size=2)
        strain = np.outer(np.eye(3)[b], np.eye(3)[a])  # x[a] grows by e x[b]
        keys = ("coord", "box") if "box" in frame else ("coord",)
        moves.append(({key: frame[key] @ strain for key in keys}, outputs["virial"][k, ..., 3 * a + b]))
    expected = np.stack([slope for _, slope in moves])
    energies = functools.partial(values, potential(model, "numpy"), frame, model.output().reduced)
    errors = [
        distance(expected, (energies(moves, -h) - energies(moves, h)).reshape(expected.shape) / (2 * h)) for h in STEPS
    ]
    assert min(errors) <= 1e-6, errors


def values(
    source: Potential, frame: Arguments, key: str, moves: list[tuple[Arguments, np.ndarray]], step: float
) -> np.ndarray:
    """(moves, size): the output of a frame after each move."""
    given = {}
    for name, value in frame.items():
        if not isinstance(value, np.ndarray):
            given[name] = value
            continue
        zero = np.zeros(value.shape, value.dtype)
        given[name] = np.stack([value + (step * move[name] if name in move else zero) for move, _ in moves])
    found: np.ndarray = source.evaluate(**given)[key]
    return found.reshape(len(moves), -1)


# --- the tests -----------------------------------------------------------------------------------------

NAMES = (*(kind.key for kind in DESCRIPTORS), LinearConfig.key)
each_kind = pytest.mark.parametrize("kind", NAMES)
thorough = functools.partial(
    settings,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # smaller examples take as long as large ones
    suppress_health_check=list(HealthCheck),
)


def run(tables: Path, kind: str, count: int) -> None:
    @thorough(max_examples=count)
    @given(drawn=models(tables, kind))
    def each(drawn: RandomModel) -> None:
        check(drawn)

    each()


@each_kind
def test_random_models(kind: str, tables: Path) -> None:
    run(tables, kind, 4)


@pytest.mark.nightly
@each_kind
def test_many_random_models(kind: str, tables: Path) -> None:
    run(tables, kind, 24)


# --- the strategy itself -------------------------------------------------------------------------------


SECTIONS = (*KINDS, ModelConfig, LinearConfig, SpinConfig, PairTableConfig)


def values_of(o: Options, seen: dict[str, set[str]]) -> None:
    """Note the values of every option that acts, of a section and those below it."""
    o.section()
    for name, field in o.kind.options().items():
        if field.metadata["option"].effect == "acts":
            nested = o[name] if isinstance(o[name], list) else [o[name]]
            below = [each for each in nested if isinstance(each, Options)]
            value = [each.kind.__name__ for each in below] or o[name]
            seen[f"{o.kind.__name__}.{name}"].add(json.dumps(value))
            for each in below:
                values_of(each, seen)


@functools.cache
def scene_of(seed: int, tables: Path) -> Scene:
    return draw_scene(random.Random(seed), tables)


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_option_that_acts_is_varied(kind: type[Config], tables: Path) -> None:
    """An option that the strategy does not know is named by it as soon as it draws the section."""
    seen: dict[str, set[str]] = collections.defaultdict(set)
    for seed in range(60):
        values_of(Options(random.Random(seed), kind, scene_of(seed % 6, tables)), seen)
    sections = {kind, *(f.metadata["option"].kinds()[0] for f in nested(kind))}
    options: dict[str, Option] = {
        f"{k.__name__}.{n}": f.metadata["option"] for k in sections for n, f in k.options().items()
    }
    for name, info in options.items():
        if info.effect == "acts":
            wanted = {json.dumps(choice) for choice in info.choices}
            assert seen[name] >= wanted, f"{name}: never {sorted(wanted - seen[name])}"
            one = len(wanted) == 1 or name in ONE_VALUE or (info.kinds is not None and len(info.kinds()) == 1)
            assert len(seen[name]) > 1 or one, f"{name} is always {seen[name]}"


def nested(kind: type[Config]) -> list[Any]:
    """Options of a descriptor that are sections themselves."""
    found = [f for f in kind.options().values() if f.metadata["option"].kinds is not None]
    return [f for f in found if kind in DESCRIPTORS and not f.metadata["option"].many]


def test_kinds_that_are_not_known_are_told() -> None:
    class Later(DescriptorConfig, key="later"):
        depth: int = option(3, "A new option.")

    with pytest.raises(LookupError, match=r"say in RULES how Later\.depth is drawn"):
        rule_of(Later, "depth")
