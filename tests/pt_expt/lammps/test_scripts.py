"""What scripts do besides one run: several runs and models, other styles beside ours, other units, Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import dpmodel
from dpmodel import lammps as places
from dpmodel.backends.pt_expt.lammps.build import lammps_version

from .conftest import Atoms, Lammps, cube
from .test_numbers import far_apart

RANKS = pytest.mark.parametrize("ranks", [1, 2])


def assert_same(run, other, step=0, atol=1e-9):
    assert abs(run.energy(step) - other.energy(step)) <= 1e-9 * max(1.0, abs(other.energy(step)))
    np.testing.assert_allclose(run.force(step), other.force(step), rtol=0, atol=atol)


def test_run_twice(lammps, make_script, dpa3_pt2):
    once = lammps.good(make_script(cube(), dpa3_pt2, after="run 10"))
    twice = lammps.good(make_script(cube(), dpa3_pt2, after="run 5\nrun 5"), ranks=2)
    assert_same(twice, once, 10)


@RANKS
def test_another_model_after_clear(lammps, make_script, dpa3_pt2, se_a_pt2, ranks):
    one = lammps.good(make_script(cube(), se_a_pt2))
    text = make_script(cube(), dpa3_pt2, after="run 2") + "clear" + make_script(cube(), se_a_pt2)
    assert_same(lammps.good(text, ranks=ranks), one)


@RANKS
def test_another_model_by_a_second_pair_style(lammps, make_script, dpa3_pt2, se_a_pt2, ranks):
    """From a local model to one with exchanges: the buffers grow."""
    one = lammps.good(make_script(cube(), dpa3_pt2))
    after = f"reset_timestep 0\npair_style dpmodel {dpa3_pt2}\npair_coeff * * O H\nrun 0"
    assert_same(lammps.good(make_script(cube(), se_a_pt2, after=after), ranks=ranks), one)


def test_coefficients_are_to_be_given_again(lammps, make_script, se_a_pt2):
    run = lammps.run(make_script(cube(), se_a_pt2, after=f"pair_style dpmodel {se_a_pt2}\nrun 0"))
    assert run.status != 0 and "All pair coeffs are not set" in run.text


def test_minimize(lammps, make_script, dpa3_pt2):
    text = make_script(cube(), dpa3_pt2, after="unfix 1\nminimize 0.0 1.0e-6 20 100", steps=1)
    one, two = lammps.good(text), lammps.good(text, ranks=2)
    last = max(one.thermo)
    assert last > 3 and one.energy(last) < one.energy(0)
    assert_same(two, one, last, atol=1e-7)


def test_no_atom_map(lammps, make_script, dpa3_pt2):
    """Without one, LAMMPS cannot tell which atom a ghost copies."""
    mapped = lammps.good(make_script(cube(), dpa3_pt2, before="atom_modify map array"))
    assert "map" not in make_script(cube(), dpa3_pt2)
    assert_same(lammps.good(make_script(cube(), dpa3_pt2)), mapped)


@RANKS
def test_rare_neighbour_lists(lammps, make_script, dpa3_pt2, ranks):
    """Between two lists atoms enter and leave the cutoff, and atoms that LAMMPS does not know of keep their rows."""
    one = lammps.good(make_script(cube(), dpa3_pt2, after="run 10"))
    rare = make_script(cube(), dpa3_pt2, after="neigh_modify delay 0 every 5 check no\nrun 10")
    assert_same(lammps.good(rare, ranks=ranks), one, 10)


@pytest.mark.parametrize("edge", [39.0, 60.0])
def test_rare_neighbour_lists_with_an_empty_rank(lammps, make_script, dpa3_pt2, edge):
    """With ghosts and without: it takes part in exchanges for all steps of a list."""
    atoms = far_apart(edge, 8.0 if edge > 40 else 0.0)
    text = make_script(atoms, dpa3_pt2, after="neigh_modify delay 0 every 5 check no\nrun 10")
    two = lammps.good(text.replace("read_data", "processors * 1 1\nread_data"), ranks=2)
    assert "0 min" in next(line for line in two.text.splitlines() if line.startswith("Nlocal"))
    assert_same(two, lammps.good(text), 10)


@RANKS
def test_beside_another_style(lammps, make_script, dpa3_pt2, ranks):
    atoms = cube()
    alone = lammps.good(make_script(atoms, dpa3_pt2))
    lj = "pair_style lj/cut 5.0", "pair_coeff * * 0.01 1.2"
    other = lammps.good(
        make_script(atoms, dpa3_pt2, style=lj[0].removeprefix("pair_style "), coeff=lj[1], centroid=False)
    )
    style = f"hybrid/overlay dpmodel {dpa3_pt2} lj/cut 5.0"
    coeff = "pair_coeff * * dpmodel O H\npair_coeff * * lj/cut 0.01 1.2"
    both = lammps.good(make_script(atoms, dpa3_pt2, style=style, coeff=coeff, centroid=False), ranks=ranks)
    assert abs(both.energy() - alone.energy() - other.energy()) <= 1e-9 * abs(alone.energy())
    np.testing.assert_allclose(both.force(), alone.force() + other.force(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(both.virial(), alone.virial() + other.virial(), rtol=0, atol=1e-9)


@RANKS
def test_types_of_another_style(lammps, make_script, dpa3_pt2, ranks):
    """hybrid: the pairs of a third type belong to lj/cut."""
    atoms = cube()
    kind = atoms.kind.copy()
    kind[::4] = 2
    three = Atoms(atoms.coord, kind, atoms.cell)
    style = f"hybrid/overlay dpmodel {dpa3_pt2} lj/cut 5.0"
    coeff = "pair_coeff * * dpmodel O H NULL\npair_coeff *3 3 lj/cut 0.01 1.2"
    both = lammps.good(make_script(three, dpa3_pt2, style=style, coeff=coeff, centroid=False), ranks=ranks)
    known = kind < 2
    expected = dpmodel.load(dpa3_pt2).evaluate(atoms.coord[known], kind[known], atoms.cell)
    lj = "pair_coeff * * 0.0 1.2\npair_coeff *3 3 0.01 1.2"
    other = lammps.good(make_script(three, dpa3_pt2, style="lj/cut 5.0", coeff=lj, centroid=False))
    force = other.force().copy()
    force[known] += expected["force"][0]
    np.testing.assert_allclose(both.force(), force, rtol=0, atol=1e-9)
    assert abs(both.energy() - other.energy() - expected["energy"].item()) <= 1e-9 * abs(both.energy())


@pytest.mark.parametrize(
    ("units", "energy", "length"), [("real", 23.0605, 1.0), ("electron", 0.0367493, 1.8897261), ("nano", 160.2177, 0.1)]
)
def test_units(lammps, make_script, dpa3_pt2, units, energy, length):
    atoms = cube()
    one = lammps.good(make_script(atoms, dpa3_pt2))
    scaled = Atoms(atoms.coord * length, atoms.kind, atoms.cell * length)
    text = make_script(scaled, dpa3_pt2, skin=length).replace("units metal", f"units {units}")
    run = lammps.good(text, ranks=2)
    assert run.energy() == pytest.approx(one.energy() * energy, rel=1e-5)
    np.testing.assert_allclose(run.force() * length / energy, one.force(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("factors", "warned"), [("lj/coul 0 0 0", True), ("lj 0 0 0 coul 1 1 1", False), ("lj/coul 1 1 1", False)]
)
def test_bonded_atoms_that_are_left_out(lammps, make_script, se_a_pt2, factors, warned):
    """LAMMPS takes a pair out of its list where both factors are 0: said once, where it changes the energy."""
    atoms = cube()
    text = make_script(atoms, se_a_pt2, centroid=False).replace("atom_style atomic", "atom_style bond")
    text = text.replace("read_data atoms.data", f"special_bonds {factors}\nbond_style zero\nread_data atoms.data")
    path = lammps.folder / "atoms.data"
    lines = path.read_text().replace("Atoms # atomic", "Atoms # bond").splitlines()
    first = lines.index("Atoms # bond") + 2
    rows = [line.split() for line in lines[first:]]
    lines[first:] = [" ".join([row[0], "1", *row[1:]]) for row in rows]
    lines[2:3] = [lines[2], "1 bonds", "1 bond types", "2 extra bond per atom", "4 extra special per atom"]
    path.write_text("\n".join([*lines, "", "Bonds", "", "1 1 1 2", ""]))
    run = lammps.good(text.replace("mass * 20.0", "mass * 20.0\nbond_coeff * "))
    assert run.text.count("special_bonds with factors of 0 remove bonded atoms") == int(warned)
    plain = lammps.good(make_script(atoms, se_a_pt2, centroid=False))
    assert (abs(run.energy() - plain.energy()) > 1e-6) == warned


def test_small_sel_is_said_once(lammps, make_script, dpa3_pt2):
    """125 atoms at half the distance have more neighbours than the model holds."""
    atoms = cube(edge=7.5)
    run = lammps.good(make_script(atoms, dpa3_pt2, after="run 3"), ranks=2)
    assert run.text.count("atoms have more neighbours than the model's sel holds") == 1


# --- how LAMMPS finds the plugin, and what it runs with ------------------------------------------------------------


def test_threads(lammps, make_script, se_a_pt2):
    """OMP_NUM_THREADS is obeyed; without it the ranks of a node share its processors."""
    run = lammps.good(make_script(cube(), se_a_pt2), env={"OMP_NUM_THREADS": "3"})
    assert "3 thread(s) per rank" in run.text
    del lammps.environment["OMP_NUM_THREADS"]
    processors = len(os.sched_getaffinity(0))
    run = lammps.good(make_script(cube(), se_a_pt2), ranks=2)
    assert f"{max(1, processors // 2)} thread(s) per rank" in run.text


def test_waiting_threads_sleep(lammps, make_script, se_a_pt2):
    """OMP_DISPLAY_ENV: torch's OpenMP says what it has read when it was loaded, after the plugin."""
    env = {"OMP_DISPLAY_ENV": "verbose"}
    run = lammps.good(make_script(cube(), se_a_pt2), env=env)
    assert run.text.count("GOMP_SPINCOUNT = '0'") == 1, "of two copies of OpenMP, torch's alone is told"
    run = lammps.good(make_script(cube(), se_a_pt2), env={**env, "OMP_WAIT_POLICY": "active"})
    assert "GOMP_SPINCOUNT = '0'" not in run.text


def test_entry_point(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(tmp_path))
    for name in places.THREADS:
        monkeypatch.delenv(name, raising=False)
    folder = places.plugins()
    assert folder == str(places.plugin_folder()) and folder.startswith(str(tmp_path))
    assert "`dpmodel lammps build`" in capsys.readouterr().err
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    (tmp_path / places.plugin_folder().name).mkdir()
    (places.plugin_folder() / places.LOADER).touch()
    places.plugins()
    assert capsys.readouterr().err == ""


def test_entry_point_never_raises(monkeypatch, capsys):
    """It runs for everybody who starts LAMMPS."""

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(places, "cache_folder", nowhere)
    assert not list(Path(places.plugins()).glob("*plugin.so"))
    said = capsys.readouterr().err
    assert "Could not determine home directory." in said and len(said.splitlines()) == 1


def test_entry_point_is_light():
    """It runs at every start of `lmp`."""
    import subprocess

    code = "import sys, dpmodel.lammps as m; m.plugin_folder(); sys.exit('torch' in sys.modules or 'lammps' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


DRIVER = """
import sys
{first}
from lammps import lammps
driver = lammps(cmdargs=["-log", "none"])
try:
    driver.commands_string(open("in.lammps").read())
finally:
    print("ended", flush=True)
print("energy", repr(driver.get_thermo("pe")))
driver.close()
"""


@pytest.mark.parametrize("first", ["", "import torch"])
def test_from_python(lammps, make_script, dpa3_pt2, first, tmp_path):
    """In one process with Python's torch too."""
    one = lammps.good(make_script(cube(), dpa3_pt2))
    (tmp_path / "driver.py").write_text(DRIVER.format(first=first))
    run = lammps.good(make_script(cube(), dpa3_pt2), command=[sys.executable, "driver.py"])
    energy = float(run.text.split("energy")[-1].split()[0])
    assert energy == pytest.approx(one.energy(), rel=1e-12)


def test_python_finds_mpi(lammps, tmp_path):
    """The entry point loads it: nobody has to set LD_LIBRARY_PATH."""
    del lammps.environment["LD_LIBRARY_PATH"]
    (tmp_path / "driver.py").write_text(
        "from lammps import lammps\nprint(lammps(cmdargs=['-log', 'none']).version())\n"
    )
    run = lammps.good("", command=[sys.executable, "driver.py"])
    assert run.text.split()[-1] == str(lammps_version())


def test_failure_from_python_ends_all_ranks(lammps, make_script, dpa3_pt2, tmp_path):
    """A program that catches exceptions leaves no rank waiting for another."""
    driver = "from mpi4py import MPI\n" + DRIVER.format(first="")
    (tmp_path / "driver.py").write_text(driver)
    env = {"DPMODEL_TEST_FAIL_EXCHANGE": "1:1"}
    run = lammps.run(make_script(cube(), dpa3_pt2), ranks=2, command=[sys.executable, "driver.py"], env=env, limit=60)
    assert run.status != 0 and run.seconds < 15
    assert run.text.count("ERROR on proc 1: Pair style dpmodel: step 0: forward exchange 2") == 1
    run = lammps.run(make_script(cube(), "nowhere.pt2"), ranks=2, command=[sys.executable, "driver.py"], limit=60)
    assert run.status != 0 and run.seconds < 15
    assert run.text.count("ended") == 2  # an exception on every rank


STAYS = """
from lammps import lammps
driver = lammps(cmdargs=["-log", "none"])
text = open("in.lammps").read()
before, after = text.split("pair_style", 1)
driver.commands_string(before)

def fails(command, message):
    try:
        driver.command(command)
    except Exception as problem:
        assert message in str(problem), problem
    else:
        raise SystemExit(f"{command} has not failed")

fails("pair_style dpmodel nowhere.pt2", "cannot use the model nowhere.pt2")
fails("pair_coeff * * O H", "pair_coeff needs a model")
fails("run 0", "coeffs are not set")
driver.commands_string("pair_style" + after)
energy = driver.get_thermo("pe")
fails("pair_style dpmodel nowhere.pt2", "cannot use the model nowhere.pt2")
fails("pair_style dpmodel MODEL fparam 1.0", "this model takes no fparam")
fails("pair_coeff * * H X", "the model has no type 'X'")
driver.command("run 0")
assert driver.get_thermo("pe") == energy
print("energy", repr(energy))
"""


def test_a_failed_command_changes_nothing(lammps, make_script, se_a_pt2, tmp_path):
    """In a program that goes on after errors."""
    one = lammps.good(make_script(cube(), se_a_pt2))
    (tmp_path / "driver.py").write_text(STAYS.replace("MODEL", str(se_a_pt2)))
    run = lammps.good(make_script(cube(), se_a_pt2), command=[sys.executable, "driver.py"])
    assert float(run.text.split("energy")[-1].split()[0]) == pytest.approx(one.energy(), rel=1e-12)


@pytest.fixture
def of_another_version(tmp_path):
    """The folder of a plugin for another LAMMPS."""
    from dpmodel.backends.pt_expt.lammps import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "lammps_version", lambda: 20240829)
        loader = build.build_loader()
    folder = tmp_path / "another"
    folder.mkdir()
    (folder / places.LOADER).symlink_to(loader)
    return folder


REFUSED = "Pair style dpmodel cannot be used: it was built for LAMMPS 20240829, this is LAMMPS "


@pytest.mark.parametrize("rank", [0, 1])
def test_another_lammps_on_one_rank(lammps: Lammps, make_script, se_a_pt2, of_another_version, rank):
    """As where nodes have disks of their own: the others do not wait for the one that refuses."""
    text = make_script(cube(), se_a_pt2)
    command = (
        f"[ $PMI_RANK = {rank} ] && export LAMMPS_PLUGIN_PATH={of_another_version}; "
        f"exec {lammps.program} -in in.lammps -log none"
    )
    run = lammps.run(text, ranks=2, command=["sh", "-c", command], limit=60)
    assert run.status != 0 and run.seconds < 10
    assert run.text.count(REFUSED) == 1


def test_another_lammps(lammps: Lammps, make_script, se_a_pt2, of_another_version):
    """Built for another version: said when the style is used, and nothing else is disturbed."""
    lammps.environment["LAMMPS_PLUGIN_PATH"] = str(of_another_version)
    for ranks in (1, 2):
        run = lammps.run(make_script(cube(), se_a_pt2), ranks=ranks)
        assert run.status != 0 and run.seconds < 10
        assert run.text.count(f"{REFUSED}{lammps_version()}") == 1
    assert lammps.run("units metal\n").status == 0


def test_partitions(lammps, make_script, dpa3_pt2, tmp_path):
    """Two simulations in one job, which take different numbers of steps: neither waits for the other."""
    text = make_script(cube(), dpa3_pt2, after="variable steps world 2 6\nrun ${steps}").replace(
        "out.atoms", "out.none"
    )
    command = [str(lammps.program), "-partition", "2x1", "-in", "in.lammps", "-log", "none"]
    del lammps.environment["OMP_NUM_THREADS"]
    lammps.good(text, ranks=2, command=command)
    for k, steps in enumerate((2, 6)):
        said = (tmp_path / f"screen.{k}").read_text()
        assert f"for {steps} steps" in said
        assert f"{max(1, len(os.sched_getaffinity(0)) // 2)} thread(s) per rank" in said


def test_load_balancing_during_a_run(lammps, make_script, dpa3_pt2):
    """Domains that move while the atoms do."""
    one = lammps.good(make_script(cube(), dpa3_pt2, after="run 10"))
    after = "fix 2 all balance 3 1.0 rcb\nrun 10"
    two = lammps.good(make_script(cube(), dpa3_pt2, before="comm_style tiled", after=after), ranks=2)
    assert_same(two, one, 10)
