"""load, evaluate, save: what is accepted, what comes back, and that wrong arguments are named before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.backend import NUMPY
from dpmodel.errors import BackendError, InputError, ModelFileError
from dpmodel.files.model_file import read_model
from dpmodel.models import Model
from dpmodel.potential import Potential

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PLAIN, WITH_PARAMETERS = GOLDEN / "se_e2_a.dp", GOLDEN / "se_e2_a_fparam_aparam.dp"
RNG = np.random.default_rng(5)
NF, NA = 2, 5
GRID = np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3)[:NA] * 1.7
COORD = GRID + RNG.uniform(-0.2, 0.2, (NF, NA, 3))
BOX = np.array([[6.0, 0.0, 0.0], [0.8, 5.5, 0.0], [-0.4, 0.6, 6.2]]) * np.array([1.0, 1.05])[:, None, None]
ATYPE = np.array([0, 1, 1, 0, 1])
FPARAM, APARAM = RNG.normal(size=(NF, 2)), RNG.normal(size=(NF, NA, 3))


@pytest.fixture(scope="module")
def potential() -> Potential:
    return dpmodel.load(PLAIN, "numpy")


@pytest.fixture(scope="module")
def demanding() -> Potential:
    """Takes fparam (2) and aparam (3)."""
    return dpmodel.load(WITH_PARAMETERS, "numpy")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a graph nor an evaluation may be made."""

    def refuse(*_args: Any, **_options: Any) -> Any:
        raise AssertionError("work began before the arguments were checked")

    monkeypatch.setattr("dpmodel.geometry.build.GraphBuilder.build", refuse)
    monkeypatch.setattr("dpmodel.potential.evaluate_graph", refuse)


def nan_at(x: np.ndarray, index: tuple[int, ...], value: float = np.nan) -> np.ndarray:
    y = x.copy()
    y[index] = value
    return y


# --- wrong arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coord": COORD[0, 0]}, r"coord: expected shape \(frames, atoms, 3\) or \(atoms, 3\), got \(3,\)"),
        ({"coord": COORD[..., :2]}, r"coord: expected shape .* got \(2, 5, 2\)"),
        ({"coord": COORD[0, :, :2]}, r"coord: expected shape .* got \(5, 2\)"),
        ({"coord": COORD.reshape(NF, -1)}, r"coord: expected shape .* got \(2, 15\)"),
        ({"coord": COORD[:0]}, r"coord: expected at least one frame, got shape \(0, 5, 3\)"),
        ({"coord": COORD + 0j}, "coord: expected real numbers, got ndarray of dtype complex128"),
        ({"coord": COORD.astype(str)}, "coord: expected real numbers, got ndarray of dtype <U"),
        ({"coord": COORD > 0}, "coord: expected real numbers, got ndarray of dtype bool"),
        ({"coord": [[[0, 0, 0], [1, 1]]]}, "coord: expected numbers of a regular shape, got list"),
        ({"coord": None}, "coord: expected"),
        ({"coord": nan_at(COORD, (1, 3, 2))}, "coord: atom 3 of frame 1 has NaN or infinite coordinates"),
        ({"coord": nan_at(COORD, (0, 0, 0), np.inf)}, "coord: atom 0 of frame 0 has NaN or infinite"),
        ({"atype": ATYPE[:-1]}, r"atype: expected shape \(5,\) or \(2, 5\) to go with coord, got \(4,\)"),
        ({"atype": [[0, 1], [0]]}, "atype: expected numbers of a regular shape"),
        ({"atype": 0}, r"atype: expected shape .* got \(\)"),
        ({"atype": ATYPE + 1}, r"atype: 2 is out of range; this model knows 0 to 1 \['O', 'H'\], and -1 pads"),
        ({"atype": ATYPE - 2}, "atype: -2 is out of range"),
        ({"atype": np.array([0, 1, 2**64 - 1, 0, 1], np.uint64)}, "atype: 18446744073709551615 is out of range"),
        ({"atype": np.ma.masked_equal(ATYPE, 0)}, "atype: 2 entries are masked"),
        ({"coord": np.ma.masked_greater(COORD, COORD[0, 0, 0])}, "coord: .* entries are masked; leave them out"),
        ({"atype": ATYPE.astype(float)}, "atype: expected integers or symbols, got dtype float64"),
        ({"atype": ATYPE > 0}, "atype: expected integers or symbols, got dtype bool"),
        ({"atype": list("OHHOX")}, r"atype: the model knows no 'X'; its type_map is \['O', 'H'\]"),
        ({"atype": ["O", "H", 1, 0, 1]}, "atype: the model knows no '1'"),
        ({"box": BOX[:, :2]}, r"box: expected shape \(2, 3, 3\), \(2, 9\), \(3, 3\) or \(9,\)"),
        ({"box": np.ones(3)}, r"rows are cell vectors; got \(3,\)"),
        ({"box": np.ones((3, 9))}, r"got \(3, 9\)"),
        ({"box": "cube"}, "box: expected real numbers"),
        ({"box": np.zeros(9)}, "box: frame 0: the periodic cell vectors are zero or linearly dependent"),
        ({"box": nan_at(BOX, (1, 2), 0.0)}, "box: frame 1: the periodic cell vectors are zero"),
        ({"box": nan_at(BOX, (1, 0, 0))}, "box: frame 1: the cell holds NaN"),
        ({"pbc": (True, False)}, "pbc must be True, False, or three of these"),
        ({"pbc": "xyz"}, "pbc must be"),
        ({"fparam": FPARAM}, "fparam was given, but this model does not take it; leave it out"),
        ({"aparam": APARAM}, "aparam was given, but this model does not take it; leave it out"),
        ({"spin": COORD}, "spin was given, but this model does not take it; leave it out"),
        ({"charge_spin": [0, 1]}, "charge_spin was given"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(
    potential: Potential, change: dict[str, Any], message: str, no_work: None
) -> None:
    with pytest.raises(InputError, match=message):
        potential.evaluate(**{"coord": COORD, "atype": ATYPE, "box": BOX, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fparam": None}, "fparam is missing: this model takes 2 numbers per frame and has no default"),
        ({"aparam": None}, "aparam is missing: this model takes 3 numbers per atom"),
        ({"fparam": FPARAM[:, :1]}, r"fparam: expected shape \(2, 2\) or \(2,\), got \(2, 1\)"),
        ({"fparam": FPARAM.ravel()}, r"fparam: expected shape .* got \(4,\)"),
        ({"fparam": 1.0}, r"fparam: expected shape .* got \(\)"),
        ({"fparam": nan_at(FPARAM, (1, 1))}, "fparam holds NaN or infinite numbers"),
        ({"aparam": np.swapaxes(APARAM, 1, 2)}, r"aparam: expected shape \(2, 5, 3\) or \(5, 3\), got \(2, 3, 5\)"),
        ({"aparam": APARAM[..., :2]}, r"aparam: expected shape .* got \(2, 5, 2\)"),
        ({"aparam": nan_at(APARAM, (1, 0, 0), np.inf)}, "aparam holds NaN or infinite"),
        ({"aparam": "none"}, "aparam: expected real numbers"),
    ],
)
def test_wrong_parameters(demanding: Potential, change: dict[str, Any], message: str, no_work: None) -> None:
    with pytest.raises(InputError, match=message):
        demanding.evaluate(COORD, ATYPE, BOX, **{"fparam": FPARAM, "aparam": APARAM, **change})


@pytest.mark.parametrize("box", [None, BOX])
def test_coordinates_beyond_all_bounds(potential: Potential, box: Any) -> None:
    coord = nan_at(nan_at(COORD, (1, 3, 2), 1e308), (1, 2, 0), -1e308)
    with pytest.raises(
        InputError, match=r"frame 1: atom [23] is too far away, .*1e\+308.*; coordinates go up to 1e\+10 Å"
    ):
        potential.evaluate(coord, ATYPE, box)
    with pytest.raises(InputError, match=r"box: frame 0: the cell is too large"):
        potential.evaluate(COORD, ATYPE, 1e308 * np.eye(3))


def test_a_cutoff_beyond_all_bounds(potential: Potential) -> None:
    model: Any = potential.model
    config = model.descriptor.config.replace(rcut=150.0)
    wide = Potential.from_model(model.replace(descriptor=model.descriptor.replace(config=config)), "numpy")
    atoms = np.random.default_rng(0).uniform(0, 12.4, (192, 3))
    with pytest.raises(InputError, match=r"frame 0: about .* neighbours per atom: too many"):
        wide.evaluate(atoms, np.zeros(192, int), 12.4 * np.eye(3))


def test_atoms_at_one_place(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    coord = np.repeat(COORD, 3, axis=0)
    coord[4, 3] = coord[4, 1]
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", "10")  # two frames a call: the number is that of the caller
    with pytest.raises(InputError, match="frame 4: atoms 1 and 3 are 0 Å apart, at one place"):
        potential.evaluate(coord, ATYPE)
    model: Any = potential.model
    config = model.descriptor.config.replace(env_protection=0.1)
    protected = Potential.from_model(model.replace(descriptor=model.descriptor.replace(config=config)), "numpy")
    energy = protected.evaluate(coord, ATYPE)["energy"]
    assert np.isfinite(energy).all()
    coord[4, 3] += 1e-9
    np.testing.assert_allclose(protected.evaluate(coord, ATYPE)["energy"], energy, rtol=1e-6)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "", "²", "1e3"])
def test_nonsense_in_the_batch_size(
    potential: Potential, text: str, monkeypatch: pytest.MonkeyPatch, no_work: None
) -> None:
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", text)
    with pytest.raises(InputError, match="DP_INFER_BATCH_SIZE must be a number of atoms above 0, not"):
        potential.evaluate(COORD, ATYPE, BOX)


def test_forces_need_derivatives(potential: Potential, no_work: None) -> None:
    with pytest.raises(
        BackendError, match="the numpy backend has no derivatives: use backend='pt' or 'jax', or forces=F"
    ):
        potential.evaluate(COORD, ATYPE, BOX, forces=True)
    with pytest.raises(BackendError, match="hessian=True: the numpy backend has no derivatives: use backend='pt'"):
        potential.evaluate(COORD, ATYPE, BOX, hessian=True)


def test_loading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"head='water': .* holds a single model, which has no heads; leave head out"):
        dpmodel.load(PLAIN, "numpy", head="water")
    with pytest.raises(ModelFileError, match="no such file"):
        dpmodel.load(tmp_path / "none.dp", "numpy")
    with pytest.raises(BackendError, match="unknown backend 'fast'"):
        dpmodel.load(PLAIN, "fast")


# --- what is accepted ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(potential: Potential) -> dict[str, np.ndarray]:
    return potential.evaluate(COORD, ATYPE, BOX, atomic=True)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance, err_msg=key)


def test_outputs(potential: Potential, expected: dict[str, np.ndarray]) -> None:
    shapes = {"energy": (NF, 1), "atom_energy": (NF, NA, 1), "mask": (NF, NA)}
    assert {key: value.shape for key, value in expected.items()} == shapes
    assert set(potential.outputs) == set(expected)
    assert {key: value.dtype.kind for key, value in expected.items()} == {
        "energy": "f",
        "atom_energy": "f",
        "mask": "i",
    }
    np.testing.assert_allclose(expected["atom_energy"].sum(axis=1), expected["energy"], rtol=1e-14)
    assert potential.evaluate(COORD, ATYPE, BOX).keys() == {"energy"}
    assert potential.evaluate(COORD, ATYPE, BOX, forces=False).keys() == {"energy"}


@pytest.mark.parametrize(
    "change",
    [
        {"coord": COORD.tolist()},
        {"coord": np.asfortranarray(COORD)},
        {"coord": COORD.astype(">f8")},
        {"atype": ATYPE.tolist()},
        {"atype": np.stack([ATYPE, ATYPE]).astype(np.int8)},
        {"atype": ATYPE.astype(np.uint64)},
        {"atype": list("OHHOH")},
        {"atype": [list("OHHOH")] * NF},
        {"atype": np.array(list("OHHOH"), dtype=object)},
        {"box": BOX.reshape(NF, 9)},
        {"box": BOX.tolist()},
        {"pbc": (True, True, True)},
        {"pbc": np.array([1, 1, 1])},
    ],
)
def test_forms_of_the_arguments(potential: Potential, expected: dict[str, np.ndarray], change: dict[str, Any]) -> None:
    same(potential.evaluate(**{"coord": COORD, "atype": ATYPE, "box": BOX, "atomic": True, **change}), expected)


@pytest.mark.parametrize("shape", [(3, 3), (9,), (1, 9), (1, 3, 3)])
def test_one_cell_for_all_frames(potential: Potential, shape: tuple[int, ...]) -> None:
    same(
        potential.evaluate(COORD, ATYPE, BOX[0].reshape(shape), atomic=True),
        potential.evaluate(COORD, ATYPE, np.stack([BOX[0]] * NF), atomic=True),
    )


def test_one_frame(potential: Potential, expected: dict[str, np.ndarray]) -> None:
    one = potential.evaluate(COORD[1], ATYPE, BOX[1], atomic=True)
    same(one, {key: value[1:] for key, value in expected.items()}, 1e-14)


def test_whole_numbers_as_coordinates(potential: Potential) -> None:
    coord = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 1]])
    same(
        potential.evaluate(coord, [0, 1, 1], 5 * np.eye(3, dtype=int)),
        potential.evaluate(coord + 0.0, [0, 1, 1], 5.0 * np.eye(3)),
    )


def test_parameters_for_all_frames(demanding: Potential) -> None:
    both = demanding.evaluate(COORD, ATYPE, BOX, fparam=np.stack([FPARAM[0]] * 2), aparam=np.stack([APARAM[0]] * 2))
    same(demanding.evaluate(COORD, ATYPE, BOX, fparam=FPARAM[0].tolist(), aparam=APARAM[0]), both)
    other = demanding.evaluate(COORD, ATYPE, BOX, fparam=FPARAM, aparam=APARAM)
    assert other["energy"][0] == both["energy"][0]
    assert other["energy"][1] != both["energy"][1]


def test_inputs_are_neither_written_to_nor_changed(demanding: Potential) -> None:
    given = {
        "coord": COORD - 40.0, "atype": np.stack([ATYPE, ATYPE[::-1]]), "box": BOX.copy(), "fparam": FPARAM.copy(),
        "aparam": APARAM.copy(),
    }  # fmt: skip
    before = {name: value.copy() for name, value in given.items()}
    writable = demanding.evaluate(**given, atomic=True)
    for name, value in given.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
        value.flags.writeable = False
    same(demanding.evaluate(**given, atomic=True), writable)


def test_virtual_atoms_may_be_anywhere(potential: Potential) -> None:
    atype = np.stack([ATYPE, ATYPE])
    atype[1, 2] = -1
    coord = nan_at(COORD, (1, 2))
    found = potential.evaluate(coord, atype, BOX, atomic=True)
    assert found["mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]]
    assert found["atom_energy"][1, 2] == 0.0
    rest = [0, 1, 3, 4]
    alone = potential.evaluate(COORD[1][rest], ATYPE[rest], BOX[1], atomic=True)
    np.testing.assert_allclose(found["energy"][1], alone["energy"][0], rtol=1e-13)


def test_open_boundaries(potential: Potential, expected: dict[str, np.ndarray]) -> None:
    opened = potential.evaluate(COORD, ATYPE, atomic=True)
    same(potential.evaluate(COORD, ATYPE, BOX, pbc=False, atomic=True), opened)
    same(potential.evaluate(COORD, ATYPE, np.zeros((3, 3)), pbc=False, atomic=True), opened)
    same(potential.evaluate(COORD, ATYPE, pbc=True, atomic=True), opened)
    assert np.all(np.abs(opened["energy"] - expected["energy"]) > 1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_periodicity_per_axis(potential: Potential, axis: int) -> None:
    """An open axis is one along which the images are out of reach; its cell vector does not matter."""
    pbc = [k != axis for k in range(3)]
    far, none = BOX.copy(), BOX.copy()
    far[:, axis] *= 10
    none[:, axis] = 0.0
    mixed = potential.evaluate(COORD, ATYPE, BOX, pbc=pbc, atomic=True)
    same(mixed, potential.evaluate(COORD, ATYPE, far, atomic=True), 1e-13)
    same(mixed, potential.evaluate(COORD, ATYPE, none, pbc=pbc, atomic=True), 1e-13)


def test_no_atoms(potential: Potential) -> None:
    found = potential.evaluate(np.zeros((2, 0, 3)), [], BOX, atomic=True)
    assert {key: value.shape for key, value in found.items()} == {
        "energy": (2, 1),
        "atom_energy": (2, 0, 1),
        "mask": (2, 0),
    }
    assert not found["energy"].any()
    with pytest.raises(InputError, match="at least one frame"):
        potential.evaluate(np.zeros((0, 0, 3)), [])


# --- in pieces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 10, 1000])
def test_pieces(demanding: Potential, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    atype = np.stack([ATYPE, [1, -1, 0, 0, 1]])
    given = {"coord": COORD, "atype": atype, "box": BOX, "fparam": FPARAM, "aparam": APARAM, "atomic": True}
    whole = demanding.evaluate(**given)
    calls: list[int] = []
    evaluator = demanding._evaluator

    def count(graph: Any, **options: Any) -> Any:
        calls.append(graph.frame.shape[0])
        return evaluator(graph, **options)

    monkeypatch.setattr(demanding, "_evaluator", count)
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", str(size))
    same(demanding.evaluate(**given), whole, 1e-13)
    assert sum(calls) == NF * NA
    assert max(calls) <= size
    assert len(calls) == (1 if size >= 10 else 2 * -(-NA // size))


# --- what a potential is -----------------------------------------------------------------------------------------


def test_properties(potential: Potential, demanding: Potential) -> None:
    assert repr(potential) == "Potential(energy, type_map=['O', 'H'], rcut=6.0, backend='numpy')"
    assert (potential.type_map, potential.rcut) == (("O", "H"), 6.0)
    assert (potential.dim_fparam, potential.dim_aparam) == (0, 0)
    assert (demanding.dim_fparam, demanding.dim_aparam) == (2, 3)
    assert isinstance(potential.model, Model)


@pytest.mark.parametrize("suffix", ["dp", "yaml", "json"])
def test_save_and_load(demanding: Potential, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{suffix}"
    dpmodel.save(demanding, path)
    again = dpmodel.load(str(path), "numpy")
    given = {"coord": COORD, "atype": ATYPE, "box": BOX, "fparam": FPARAM, "aparam": APARAM, "atomic": True}
    same(again.evaluate(**given), demanding.evaluate(**given))
    assert again.file.definition == demanding.file.definition
    assert again.file.provenance["software"] == "deepmd-kit"
    with pytest.raises(ModelFileError, match="model files end in"):
        dpmodel.save(demanding, tmp_path / "m.xyz")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_from_model(potential: Potential, expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    made = Potential.from_model(read_model(PLAIN).model, "numpy")
    assert made.backend is NUMPY
    same(made.evaluate(COORD, ATYPE, BOX, atomic=True), expected)
    dpmodel.save(made, tmp_path / "m.dp")
    same(dpmodel.load(tmp_path / "m.dp", "numpy").evaluate(COORD, ATYPE, BOX, atomic=True), expected)
