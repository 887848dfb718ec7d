"""Programs that JAX exports: the numbers of the model at any size, and what is done with files that are not whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest

import dpmodel
from dpmodel.backends.jax import export
from dpmodel.cli import main
from dpmodel.errors import BackendError, InputError, ModelFileError
from dpmodel.files import program
from dpmodel.files.container import read_tree, store_tree
from dpmodel.files.hdf5 import write_hdf5
from dpmodel.input import load_model
from dpmodel.models import Model, builder_of
from dpmodel.models.build import build_model

SE_A = {"type": "se_e2_a", "sel": [30, 30], "rcut": 4.0, "neuron": [3], "axis_neuron": 2, "seed": 1}
DPA3 = {
    "type": "dpa3", "seed": 1, "add_chg_spin_ebd": True, "default_chg_spin": [1.0, 2.0],
    "repflow": {
        "e_rcut": 4.0, "e_rcut_smth": 2.5, "e_sel": 60, "a_rcut": 3.0, "a_rcut_smth": 2.0, "a_sel": 30, "n_dim": 4,
        "e_dim": 3, "a_dim": 3, "nlayers": 1, "axis_neuron": 2,
    },
}  # fmt: skip
FITTING = {"neuron": [4], "seed": 1}
MODELS: dict[str, dict[str, Any]] = {
    "se_e2_a": {"descriptor": SE_A, "fitting_net": FITTING},
    "parameters": {
        "descriptor": {**SE_A, "precision": "float32"},
        "fitting_net": {**FITTING, "numb_fparam": 2, "numb_aparam": 1, "default_fparam": [0.5, -0.5]},
    },
    "dpa3": {"descriptor": DPA3, "fitting_net": FITTING},
    "dipole": {"descriptor": SE_A, "fitting_net": {**FITTING, "type": "dipole"}},
    "dos": {"descriptor": SE_A, "fitting_net": {**FITTING, "type": "dos", "numb_dos": 3}},
}


def model_of(name: str) -> Model:
    return build_model(load_model({"type_map": ["O", "H"], **MODELS[name]}))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """frozen(name) -> `name`.hlo beside `name`.dp, made once."""
    folder = tmp_path_factory.mktemp("programs")

    def make(name: str) -> Path:
        source, target = folder / f"{name}.dp", folder / f"{name}.hlo"
        if not target.exists():
            dpmodel.save(dpmodel.Potential.from_model(model_of(name), "numpy"), source)
            dpmodel.freeze(source, target)
        return target

    return make


def system(atoms: int, frames: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(atoms)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)[:atoms]
    return (
        2.1 * grid + rng.uniform(0, 0.4, (frames, atoms, 3)),
        np.arange(atoms) % 2,
        np.tile(np.eye(3) * 9.0, (frames, 1, 1)),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] * (name in ("dipole", "dos"))) for name in MODELS]
)
def test_the_numbers_of_the_model(frozen: Callable[[str], Path], name: str) -> None:
    path = frozen(name)
    ours, reference = dpmodel.load(path), dpmodel.load(path.with_suffix(".dp"), backend="pt")
    assert ours.backend.name == "jax" and ours.outputs == tuple(k for k in reference.outputs if k != "hessian")
    tolerance = 2e-5 if name == "parameters" else 1e-10
    for atoms, frames in ((0, 1), (1, 1), (5, 2), (40, 1)):
        coord, atype, box = system(atoms, frames)
        more = {"aparam": np.ones((frames, atoms, 1))} if name == "parameters" else {}
        expected = reference.evaluate(coord, atype, box, atomic=True, **more)
        found = ours.evaluate(coord, atype, box, atomic=True, **more)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].shape == value.shape and found[key].dtype == value.dtype, key
            np.testing.assert_allclose(
                found[key], value, rtol=0, atol=tolerance * max(1.0, np.abs(value).max(initial=0))
            )
    plain = ours.evaluate(coord, atype, box, forces=False, **more)
    assert not {"force", "virial", "atom_virial"} & plain.keys()
    assert ours._evaluator.compilations() <= 5


def test_pieces_of_large_systems(frozen: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut by centres, with nodes beyond them."""
    ours = dpmodel.load(frozen("se_e2_a"))
    whole = ours.evaluate(*system(40, 1), atomic=True)
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", "30")
    for key, value in ours.evaluate(*system(40, 1), atomic=True).items():
        np.testing.assert_allclose(value, whole[key], rtol=0, atol=1e-10 * max(1.0, np.abs(whole[key]).max()))


def test_the_command_and_the_file(
    frozen: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = frozen("se_e2_a").with_suffix(".dp")
    assert main(["freeze", str(source), "-o", str(tmp_path / "m.hlo")]) == 0
    text = capsys.readouterr().out
    assert "compared with the model" in text and "LAMMPS" not in text
    found = program.read_program(tmp_path / "m.hlo").metadata
    assert found["format_version"] == 1 and found["platforms"] == ["cpu", "cuda"] and found["precision"] == "float64"
    assert [each["name"] for each in found["inputs"]][:4] == ["atype", "frame", "natoms", "centre"]
    assert {each["name"]: each["axes"] for each in found["outputs"]} == {
        "energy": ["frames"], "atom_energy": ["atoms"], "mask": ["atoms"], "force": ["nodes"], "virial": ["frames"],
        "atom_virial": ["nodes"],
    }  # fmt: skip
    assert [each["atoms"] for each in found["compared"]] == [27, 8, 1, 0]
    assert all(each["largest_difference"] <= 1e-10 for each in found["compared"])
    # It is a model file too, and the program goes where it is converted.
    for name in ("m.dp", "m.yaml"):
        assert main(["convert", str(tmp_path / "m.hlo"), str(tmp_path / name)]) == 0
        tree = read_tree(tmp_path / name)
        assert "constants" not in tree and "stablehlo" not in (tree.get("@variables") or {})
    before, after = (dpmodel.load(path, "numpy").model.state() for path in (source, tmp_path / "m.dp"))
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)
    loaded = dpmodel.load(tmp_path / "m.hlo").model.state()
    assert all(np.array_equal(before[key], loaded[key]) for key in before)


def test_a_program_that_differs_is_not_written(
    frozen: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = frozen("se_e2_a").with_suffix(".dp"), tmp_path / "m.hlo"
    plain = export.export_model
    monkeypatch.setattr(
        export, "export_model", lambda model, like: plain(model.replace(out_bias=model.out_bias + 1e-6), like)
    )
    with pytest.raises(BackendError, match=r"of a graph of 27 atoms .* away from the model"):
        dpmodel.freeze(source, target)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported(
    frozen: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def depends_on_the_size(model: Any, graph: Any, *args: Any, **options: Any) -> Any:
        return {"energy": graph.edge_vec if graph.edge_vec.shape[0] > graph.frame.shape[0] else graph.natoms}

    monkeypatch.setattr(export, "predict", depends_on_the_size)
    with pytest.raises(BackendError, match="cannot be exported by JAX"):
        dpmodel.freeze(frozen("se_e2_a").with_suffix(".dp"), tmp_path / "m.hlo")


def test_what_is_refused(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    path = frozen("se_e2_a")
    source = path.with_suffix(".dp")
    with pytest.raises(InputError, match=r"freeze writes \.pt2 and \.hlo files"):
        dpmodel.freeze(source, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no folder"):
        dpmodel.freeze(source, tmp_path / "none" / "m.hlo")
    with pytest.raises(BackendError, match=r"\(\.hlo\) run on the backend 'jax', not on 'numpy'"):
        dpmodel.load(path, "numpy")
    with pytest.raises(InputError, match="compiled already"):
        dpmodel.load(path, compile=True)
    with pytest.raises(InputError, match="head"):
        dpmodel.load(path, head="a")
    with pytest.raises(BackendError, match="holds no second derivatives"):
        dpmodel.load(path)._evaluator(graph_of(3), forces=True, atomic=False, hessian=object())
    with pytest.raises(ValueError, match=r"the program takes .*int64 atype.* the graph holds .*float64 fparam"):
        dpmodel.load(path)._evaluator(graph_of(3, fparam=np.zeros((1, 1))), forces=True, atomic=False)


def graph_of(atoms: int, **more: Any) -> Any:
    coord, atype, box = system(atoms, 1)
    return builder_of(model_of("se_e2_a")).build(coord, atype[None], box, **more)


def test_files_of_others(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    """DeePMD-kit's files of this suffix hold other programs, which are not run: the model in them is."""
    tree = read_tree(frozen("se_e2_a").with_suffix(".dp"))
    tree |= {"@variables": {"stablehlo": np.void(b"\x00ML\x00")}, "constants": {"type_map": ["O", "H"], "rcut": 4.0}}
    write_hdf5(tmp_path / "m.hlo", lambda file: store_tree(file, tree, "m.hlo"))
    found = dpmodel.load(tmp_path / "m.hlo", "numpy")
    assert found.backend.name == "numpy" and found.rcut == 4.0


def changed(path: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    tree = read_tree(path)
    change(tree)
    write_hdf5(target, lambda file: store_tree(file, tree, str(target)))
    return target


def flip(tree: dict[str, Any]) -> None:
    code = bytearray(tree["@variables"]["stablehlo"].tobytes())
    code[len(code) // 2] ^= 1
    tree["@variables"]["stablehlo"] = np.void(bytes(code))


def other_weights(tree: dict[str, Any]) -> None:
    tree["model"]["@variables"]["out_bias"] = tree["model"]["@variables"]["out_bias"] + 1.0


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "bit": (flip, "the program is damaged or was changed"),
    "no_program": (lambda tree: tree["@variables"].pop("stablehlo"), "the program is missing"),
    "version": (lambda tree: tree["constants"].update(format_version=2), "format version 2, this program reads 1"),
    "key": (lambda tree: tree["constants"].pop("inputs"), r"constants: missing \['inputs'\]"),
    "unknown": (lambda tree: tree["constants"].update(more=1), r"unknown \['more'\]"),
    "kind": (lambda tree: tree["constants"].update(platforms="cpu"), "platforms should be list"),
    "array": (lambda tree: tree["constants"]["inputs"][0].pop("axes"), r"inputs\[0\]: missing \['axes'\]"),
    "weights": (other_weights, "the model inside is not the one that was compiled"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(frozen: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    change, message = DAMAGE[name]
    with pytest.raises(ModelFileError, match=message):
        dpmodel.load(changed(frozen("se_e2_a"), tmp_path / "m.hlo", change))


def test_truncated_files(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    whole = frozen("se_e2_a").read_bytes()
    for part in (0, 100, len(whole) // 2, len(whole) - 100):
        (tmp_path / "m.hlo").write_bytes(whole[:part])
        with pytest.raises(ModelFileError):
            dpmodel.load(tmp_path / "m.hlo")
    with pytest.raises(ModelFileError, match="no such file"):
        dpmodel.load(tmp_path / "none.hlo")


def rewritten(path: Path, target: Path, code: bytes, **changes: Any) -> Path:
    """A file that says of another program that it is its own."""
    found = program.read_program(path)
    about = {key: value for key, value in found.metadata.items() if key not in ("program_hash", "model_hash")}
    program.write_program(target, found.file, code, {**about, **changes})
    return target


def test_programs_that_are_not_run(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    path, target = frozen("se_e2_a"), tmp_path / "m.hlo"
    with pytest.raises(ModelFileError, match="cannot read the program"):
        dpmodel.load(rewritten(path, target, b"nothing of that kind"))
    native = jax.export.export(jax.jit(lambda x: jax.numpy.linalg.qr(x)[0]))(jax.ShapeDtypeStruct((3, 3), np.float32))
    with pytest.raises(ModelFileError, match="calls native functions"):
        dpmodel.load(rewritten(path, target, bytes(native.serialize())))
    with pytest.raises(BackendError, match="was made for tpu"):
        dpmodel.load(rewritten(path, target, b"any", platforms=["tpu"]))


def test_without_flatbuffers(frozen: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = frozen("se_e2_a")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    for action in (lambda: dpmodel.load(path), lambda: dpmodel.freeze(path.with_suffix(".dp"), tmp_path / "m.hlo")):
        with pytest.raises(BackendError, match=r'flatbuffers, which is not installed: pip install "dpmodel\[jax\]"'):
            action()


def test_no_pickles_and_no_links(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "m.hlo"
    shutil.copy(frozen("se_e2_a"), copy)
    with h5py.File(copy, "r+") as file:
        (name,) = [key for key in file if file[key].dtype.kind == "V"]
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(ModelFileError, match="no dataset"):
        dpmodel.load(copy)
