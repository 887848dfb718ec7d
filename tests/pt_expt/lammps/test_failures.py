"""Whatever goes wrong on one rank ends all of them, soon, with one message that says what and where."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest

from .conftest import changed, cube

SOON = 10.0


def fails(lammps, text, message, *, ranks=2, env=None):
    run = lammps.run(text, ranks=ranks, env=env, limit=60)
    assert run.status != 0, run.text
    said = [line for line in run.text.splitlines() if "Pair style dpmodel:" in line and "ERROR" in line]
    assert len(said) == 1, run.text
    assert message in said[0]
    assert run.seconds < SOON
    assert "LAMMPS is built" not in run.text
    return run


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_failing_exchange(lammps, make_script, dpa3_pt2, number, rank):
    text = make_script(cube(), dpa3_pt2, after="run 3")
    env = {"DPMODEL_TEST_FAIL_EXCHANGE": f"{rank}:{number}"}
    fails(lammps, text, "a failure made for tests", env=env)


def test_some_ranks_fail_and_not_the_first(lammps, make_script, dpa3_pt2):
    fails(lammps, make_script(cube(), dpa3_pt2), "a failure made", ranks=3, env={"DPMODEL_TEST_FAIL_EXCHANGE": "-1:1"})


def test_a_failing_exchange_on_one_rank(lammps, make_script, dpa3_pt2):
    text = make_script(cube(), dpa3_pt2)
    run = fails(lammps, text, "a failure made for tests", ranks=1, env={"DPMODEL_TEST_FAIL_EXCHANGE": "0:1"})
    assert "step 0: forward exchange 2 (float64, width 6" in run.text


@pytest.mark.parametrize("model", ["se_a_pt2", "dpa3_pt2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_nan(lammps, make_script, request, model, rank):
    text = make_script(cube(), request.getfixturevalue(model), after="run 5")
    run = fails(lammps, text, "step 3: the energy is NaN or infinite", env={"DPMODEL_TEST_NAN": f"{rank}:3"})
    assert f"on rank {rank}" in run.text


@pytest.mark.parametrize("rank", [0, 1])
def test_force_that_is_nan(lammps, make_script, dpa3_pt2, rank):
    """In the row of a ghost alone, before it is sent home."""
    text = make_script(cube(), dpa3_pt2, after="run 5")
    run = fails(lammps, text, "step 2: the force on atom", env={"DPMODEL_TEST_NAN_FORCE": f"{rank}:2"})
    assert f"on rank {rank}" in run.text


def test_nothing_is_left_behind(lammps, make_script, dpa3_pt2, tmp_path):
    """What torch unpacks goes when it is loaded: an abort cleans nothing up."""
    (tmp_path / "scratch").mkdir()
    env = {"TMPDIR": str(tmp_path / "scratch"), "DPMODEL_TEST_FAIL_EXCHANGE": "1:1"}
    fails(lammps, make_script(cube(), dpa3_pt2), "a failure made for tests", env=env)
    assert not list((tmp_path / "scratch").rglob("*.so"))
    assert not list((tmp_path / "scratch").glob("aotinductor*"))


def test_atoms_at_one_place(lammps, make_script, dpa3_pt2):
    atoms = cube()
    atoms.coord[7] = atoms.coord[8] + 1e-9
    run = fails(lammps, make_script(atoms, dpa3_pt2), "are at one place")
    assert "atoms 8 and 9" in run.text or "atoms 9 and 8" in run.text


def test_excluded_atoms_at_one_place(lammps, make_script, se_a_pt2, tmp_path):
    """As in Python: a pair that no view holds may be at one place, another may not."""
    atoms = cube()
    one, other = (int(np.flatnonzero(atoms.kind == kind)[3]) for kind in (0, 1))
    atoms.coord[one] = atoms.coord[other] + 1e-9
    changed(se_a_pt2, tmp_path / "excluded.pt2", pair_exclude_types=[[0, 1]])
    assert np.isfinite(lammps.good(make_script(atoms, "excluded.pt2"), ranks=2).energy())
    fails(lammps, make_script(atoms, se_a_pt2), "are at one place")


@pytest.mark.parametrize("values", ["101 1", "-101 1", "0 101", "0 -1"])
def test_charge_and_spin_without_a_row(lammps, make_script, se_a_pt2, tmp_path, values):
    changed(se_a_pt2, tmp_path / "charged.pt2", charge_spin=True)
    text = make_script(cube(), "", style=f"dpmodel charged.pt2 charge_spin {values}")
    message = f"charge_spin expects a charge from -100 to 100 and a spin from 0 to 100, got {values}"
    fails(lammps, text, message, ranks=1)


def test_charge_and_spin_with_a_row(lammps, make_script, se_a_pt2, tmp_path):
    """Numbers are truncated, as in Python. The model behind these metadata has no use for them."""
    changed(se_a_pt2, tmp_path / "charged.pt2", charge_spin=True)
    for values in ("-100.9 100.9", "100 -0.5"):
        lammps.good(make_script(cube(), "", style=f"dpmodel charged.pt2 charge_spin {values}"))


def test_coordinates_that_are_not_numbers(lammps, make_script, dpa3_pt2):
    """Between two neighbour lists, so that LAMMPS does not look."""
    after = "neigh_modify delay 100 every 100\ngroup third id 3\nfix 2 third addforce 1e308 0 0\ntimestep 100\nrun 5"
    text = make_script(cube(), dpa3_pt2, after=after)
    fails(lammps, text, "step 1: atom 3 has coordinates that are NaN or infinite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "O X"}, "the model has no type 'X'; it has O H"),
        ({"names": "O H H"}, "pair_coeff names 3 types, the simulation has 2"),
        ({"names": "O"}, "pair_coeff names 1 types, the simulation has 2"),
        ({"before": "newton off"}, "use newton on"),
        (
            {"ready": "group some id 1:50\natom_modify first some\ncomm_modify group some"},
            "comm_modify group leaves out neighbours",
        ),
        ({"style": "dpmodel nowhere.pt2"}, "cannot use the model nowhere.pt2: the file cannot be read"),
        ({"style": "dpmodel atoms.data"}, "cannot use the model atoms.data: it is no exported model"),
        ({"style": "dpmodel {} fparam 1.0"}, "this model takes no fparam"),
        (
            {"style": "dpmodel {} fparm 1.0"},
            "unknown option 'fparm'; known are fparam, aparam, charge_spin and max_spin",
        ),
        ({"style": "dpmodel"}, "expected a model"),
    ],
)
def test_input(lammps, make_script, se_a_pt2, change, message):
    change = {k: v.replace("{}", str(se_a_pt2)) for k, v in change.items()}
    newton = change.get("before") == "newton off"
    text = make_script(cube(), se_a_pt2, **change)
    text = text.replace("newton on\n", "") if newton else text
    fails(lammps, text, message)


def test_more_types_than_the_model(lammps, make_script, se_a_pt2):
    fails(
        lammps,
        make_script(cube(kinds=3), se_a_pt2, coeff="pair_coeff * *"),
        "the simulation has 3 types and the model 2 (O H)",
    )


def test_units_lj(lammps, make_script, se_a_pt2):
    fails(lammps, make_script(cube(), se_a_pt2).replace("units metal", "units lj"), "units lj have no eV")


def test_atomic_virial_that_was_not_frozen(lammps, make_script, dpa3_float32_pt2):
    fails(lammps, make_script(cube(), dpa3_float32_pt2), "frozen without them: dpmodel freeze --atomic-virial")


def test_different_files_on_two_ranks(lammps, make_script, dpa3_pt2, tmp_path):
    """Each rank finds its own `model.pt2`, as on nodes with disks of their own."""
    for rank, model in enumerate((dpa3_pt2, changed(dpa3_pt2, tmp_path / "other.pt2", compared=[]))):
        (tmp_path / f"node{rank}").mkdir()
        shutil.copy(model, tmp_path / f"node{rank}" / "model.pt2")
    text = make_script(cube(), "model.pt2").replace("read_data ", "read_data ../").replace("out.atoms", "../out.atoms")
    (tmp_path / "in.ranks").write_text(text)
    command = f"cd node$PMI_RANK && exec {lammps.program} -in ../in.ranks -log none"
    run = lammps.run(text, ranks=2, command=["sh", "-c", command], limit=60)
    assert run.status != 0 and run.seconds < SOON
    assert run.text.count("model.pt2 is not the same file on every rank") == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"torch_version": "2.4.0"}, "it was compiled for torch 2.4.0, this plugin is linked to torch 2."),
        ({"format_version": 7}, "it has format version 7, this plugin reads 2"),
        ({"op_abi": 2}, "version 2 of the ghost exchange, this plugin has 1"),
        ({"without": ("exchanges",)}, "its metadata lack 'exchanges'"),
        ({"rcut": 2.0}, "neighbours are needed up to 4.0"),
        ({"max_bytes_per_row": 8}, "an exchange of 48 bytes per atom, at most 8 are declared"),
        ({"device": "cuda"}, "it was frozen for the device 'cuda'"),
        (
            {"rename": lambda name: name.replace("/data/aotinductor/", "/../data/aotinductor/")},
            "has a name that no exported model has",
        ),
        (
            {"rename": lambda name: name.replace("data/dpmodel/model.dp", "data/aotinductor/model/..x")},
            "data/aotinductor/model/..x' has a name that no exported model has",
        ),
        (
            {"rename": lambda name: "../" + name.partition("/")[2]},
            "has a name that no exported model has",
        ),
        (
            {"rename": lambda name: name.replace("extra/dpmodel.json", "extra/other.json")},
            "it holds no extra/dpmodel.json",
        ),
    ],
)
def test_file(lammps, make_script, dpa3_pt2, tmp_path, keys, message):
    changed(dpa3_pt2, tmp_path / "changed.pt2", **keys)
    fails(lammps, make_script(cube(), "changed.pt2"), message)


@pytest.mark.parametrize("entry", ["data/dpmodel/model.dp", "extra/dpmodel.json", ".so"])
def test_a_file_with_one_changed_byte(lammps, make_script, dpa3_pt2, tmp_path, entry):
    """torch's own reader compares no checksums: the model would run, and be another."""
    data = bytearray(dpa3_pt2.read_bytes())
    with zipfile.ZipFile(dpa3_pt2) as archive:
        name = next(name for name in archive.namelist() if name.endswith(entry))
        place = data.index(archive.read(name)[:512]) + 100
    data[place] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(data)
    fails(lammps, make_script(cube(), "flipped.pt2"), f"its entry '{name}' is damaged")


@pytest.mark.parametrize("kept", [0, 10, 5000, 100000])
def test_a_file_that_was_cut_short(lammps, make_script, dpa3_pt2, tmp_path, kept):
    (tmp_path / "cut.pt2").write_bytes(dpa3_pt2.read_bytes()[:kept])
    fails(lammps, make_script(cube(), "cut.pt2"), "cannot use the model cut.pt2")


def test_metadata_with_another_schedule(lammps, make_script, dpa3_pt2, tmp_path):
    """The counts of exchanges are compared in every step, on every rank at once."""
    with zipfile.ZipFile(dpa3_pt2) as archive:
        name = next(n for n in archive.namelist() if n.endswith("extra/dpmodel.json"))
        exchanges = json.loads(archive.read(name))["exchanges"]
    changed(dpa3_pt2, tmp_path / "more.pt2", exchanges=[*exchanges, exchanges[0]])
    fails(lammps, make_script(cube(), "more.pt2"), "left out exchanges")
    changed(dpa3_pt2, tmp_path / "fewer.pt2", exchanges=exchanges[:-1])
    fails(lammps, make_script(cube(), "fewer.pt2"), "makes another exchange than its metadata say")


def test_ghosts_that_do_not_reach(lammps, make_script, dpa3_pt2):
    """LAMMPS raises the cutoff of ghosts to that of the pair style, and says so. Where it did not, the run would not begin."""
    one = lammps.good(make_script(cube(), dpa3_pt2))
    run = lammps.good(make_script(cube(), dpa3_pt2, before="comm_modify cutoff 2.0"), ranks=2)
    assert abs(run.energy() - one.energy()) <= 1e-10 * abs(one.energy())
    message = "ghost atoms reach 3.9, the model needs 4: raise comm_modify cutoff"
    run = fails(lammps, make_script(cube(), dpa3_pt2), message, env={"DPMODEL_TEST_REACH": "3.9"})
    assert not run.thermo
