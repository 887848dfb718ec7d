"""Descriptors and features of atoms: equal on every backend, and what the file holds."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import dpmodel
from dpmodel.cli import main
from dpmodel.data import write_system
from dpmodel.errors import InputError
from dpmodel.models import Model
from dpmodel.potential import Potential

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
RNG = np.random.default_rng(3)
NF, NA = 3, 6
COORD = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:NA] * 2.0 + RNG.uniform(-0.3, 0.3, (NF, NA, 3))
ATYPE = np.array([[1, 0, 1, 1, 0, -1], [0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, -1]])
BOX = np.eye(3) * 7.0 + 0.1


def last_layer(model: Model, feature: np.ndarray, kind: int) -> np.ndarray:
    net = model.fitting.networks[0 if model.fitting.mixed_types else kind]
    return net.layers[-1](feature)


@pytest.mark.parametrize("name", ["se_e2_a", "dpa3", "spin_sea", "se_e2_a_fparam_aparam"])
def test_features_lead_to_the_energy(name: str) -> None:
    potential = dpmodel.load(GOLDEN / f"{name}.dp", "numpy")
    rng, given = np.random.default_rng(2), {}
    if potential.model.spin_scales is not None:
        given["spin"] = rng.normal(size=COORD.shape)
    if potential.dim_fparam:
        given = {"fparam": rng.normal(size=(NF, 2)), "aparam": rng.normal(size=(NF, NA, 3))}
    found = potential.features(COORD, ATYPE, BOX, **given)
    energy = potential.evaluate(COORD, ATYPE, BOX, atomic=True, **given)["atom_energy"][:, :, 0]
    assert all(value.shape[:2] == (NF, NA) and not value[ATYPE < 0].any() for value in found.values())
    model = potential.model.backbone if name.startswith("spin") else potential.model
    assert found["descriptor"].shape[2] == model.descriptor.dim_out
    for kind in range(2):
        rows = kind == ATYPE
        difference = energy[rows] - last_layer(model, found["fitting_feature"][rows], kind)[:, 0]
        assert np.ptp(difference) <= 1e-12 and rows.sum() > 1  # the bias of the type
    np.testing.assert_array_equal(potential.descriptors(COORD, ATYPE, BOX, **given), found["descriptor"])
    np.testing.assert_array_equal(potential.fitting_features(COORD, ATYPE, BOX, **given), found["fitting_feature"])
    for backend in ("pt", "pt_expt"):
        other = dpmodel.load(GOLDEN / f"{name}.dp", backend).features(COORD, ATYPE, BOX, **given)
        for key, value in found.items():
            np.testing.assert_allclose(other[key], value, rtol=0, atol=1e-12)


def test_jax_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dpmodel.load(GOLDEN / "se_e2_a.dp", "numpy").features(COORD, ATYPE, BOX)
    found = dpmodel.load(GOLDEN / "se_e2_a.dp", "jax").features(COORD, ATYPE, BOX)
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", "4")
    parts = dpmodel.load(GOLDEN / "se_e2_a.dp", "pt").features(COORD, ATYPE, BOX)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-12)
        np.testing.assert_allclose(parts[key], value, rtol=0, atol=1e-12)


def test_composites_have_none() -> None:
    potential = dpmodel.load(GOLDEN / "linear_mean.dp", "numpy")
    with pytest.raises(InputError, match="a LinearModel has no descriptor of its own; take those of its parts"):
        potential.descriptors(COORD, ATYPE, BOX)
    part = Potential.from_model(potential.model.parts[0], "numpy")
    assert part.descriptors(COORD, ATYPE, BOX).shape[:2] == (NF, NA)


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    for name, box in (("a", np.broadcast_to(BOX, (NF, 3, 3))), ("b", None)):
        write_system(tmp_path / name, COORD[:, :5], [1, 0, 1, 1, 0], box, type_map=["O", "H"], labels={})
    return tmp_path


@pytest.mark.parametrize(("dtype", "name"), [("fp32", "float32"), ("fp64", "float64"), ("native", "float64")])
def test_file(systems: Path, dtype: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpmodel.embedding.CHUNK_ATOMS", 10)
    target = systems / "e.hdf5"
    given = ["embed", "-m", str(GOLDEN / "se_e2_a.dp"), "-s", str(systems), "-o", str(target), "--numpy", "-v", "ERROR"]
    assert main([*given, "--dtype", dtype]) == 0
    potential = dpmodel.load(GOLDEN / "se_e2_a.dp", "numpy")
    with h5py.File(target) as file:
        assert list(file["systems"]) == ["0", "1"]
        assert list(file.attrs["type_map"]) == ["O", "H"]
        assert file.attrs["model"] == str(GOLDEN / "se_e2_a.dp")
        for index, box in (("0", BOX), ("1", None)):
            group = file["systems"][index]
            assert group.attrs["path"] == str(systems / "ab"[int(index)])
            expected = potential.features(COORD[:, :5], [1, 0, 1, 1, 0], box)
            for key, value in expected.items():
                assert group[key].dtype == name
                np.testing.assert_allclose(group[key][:], value, rtol=1e-6 if dtype == "fp32" else 1e-12, atol=1e-7)
            np.testing.assert_array_equal(group["atype"][:], [[1, 0, 1, 1, 0]] * NF)


def test_bad_input(systems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = systems / "e.hdf5"
    given = ["embed", "-o", str(target), "--numpy", "-v", "ERROR", "-m"]
    (systems / "list").write_text("# nothing\n")
    assert main([*given, str(GOLDEN / "se_e2_a.dp"), "-f", str(systems / "list")]) == 1
    assert "expected a text file with one system per line, found none" in capsys.readouterr().err
    assert main([*given, str(GOLDEN / "linear_mean.dp"), "-s", str(systems)]) == 1
    assert "a LinearModel has no descriptor of its own" in capsys.readouterr().err
    assert main([*given, str(GOLDEN / "se_e2_a.dp"), "-s", str(systems), "--head", "water"]) == 1
    assert "holds a single model" in capsys.readouterr().err
    assert not target.exists()


def test_inputs_of_xyz_under_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame parameters and labels of the same numbers, by the names that the file has: the same features and deviations."""
    monkeypatch.chdir(tmp_path)
    model = str(GOLDEN / "dpa3_default_fparam.dp")
    symbols = dpmodel.load(model, "numpy").type_map
    own = ["fparam=REF_fparam", "energy=REF_energy", "force=REF_forces"]
    for name, prefix in (("a.xyz", ""), ("b.xyz", "REF_")):
        head = 'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:'
        numbers = " ".join(["0.3"] * dpmodel.load(model, "numpy").dim_fparam)
        lines = [str(NA), f'{head}{prefix}forces:R:3 {prefix}energy=2.5 {prefix}fparam="{numbers}"']
        lines += [f"{symbols[k % 2]} {' '.join(map(str, x))} 0.1 0.2 {k}" for k, x in enumerate(COORD[0])]
        Path(name).write_text("\n".join(lines) + "\n")
        options = ["--label-names", *own] if prefix else []
        assert main(["embed", "-m", model, "-s", name, "-o", f"{name}.hdf5", *options]) == 0
        command = ["model-devi", "-m", model, "--real-error", "-s", name, "-o", f"{name}.out"]
        assert main([*command, "-b", "pt", *options]) == 0
    for key in ("descriptor", "fitting_feature"):
        with h5py.File("a.xyz.hdf5") as a, h5py.File("b.xyz.hdf5") as b:
            np.testing.assert_array_equal(a[f"systems/0/{key}"][()], b[f"systems/0/{key}"][()])
    one, two = (np.loadtxt(f"{name}.out") for name in ("a.xyz", "b.xyz"))
    np.testing.assert_array_equal(one, two)
    assert one.size > 3
    assert main(["embed", "-m", model, "-s", "b.xyz", "-o", "c.hdf5"]) == 0  # with the model's own numbers
    with h5py.File("c.hdf5") as a, h5py.File("b.xyz.hdf5") as b:
        assert not np.array_equal(a["systems/0/fitting_feature"][()], b["systems/0/fitting_feature"][()])
