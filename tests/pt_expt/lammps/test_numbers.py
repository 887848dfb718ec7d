"""The same numbers as `evaluate`, on one rank and on two."""

from __future__ import annotations

import dataclasses
import math
import sys

import mpi4py  # noqa: F401 - a program of a test needs it; without it that test would be lost
import numpy as np
import pytest

import dpmodel

from .conftest import CENTROID, NKTV2P, Atoms, cube

SYMMETRIC = [0, 4, 8, 1, 2, 5]
"""xx yy zz xy xz yz of a row-major 3 x 3."""
CENTROID_ORDER = [0, 4, 8, 3, 6, 7, 1, 2, 5]
"""xx yy zz xy xz yz yx zx zy, position first: LAMMPS."""
STRESS = [f"c_virial[{k}]" for k in range(1, 7)]
FORTY = np.arange(40)


def triclinic() -> Atoms:
    """A cell less than two cutoffs wide: atoms see several images of each other and of themselves."""
    cell = np.array([[6.2, 0.0, 0.0], [1.9, 5.9, 0.0], [-1.4, 1.1, 5.7]])
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:20]
    fraction = (grid + 0.5 + rng.uniform(-0.15, 0.15, grid.shape)) / 3
    return Atoms(fraction @ cell, np.arange(20) % 2, cell)


def cluster() -> Atoms:
    atoms = cube()
    return Atoms(atoms.coord[FORTY], atoms.kind[FORTY], atoms.cell, "f f f")


def far_apart(edge: float, shift: float) -> Atoms:
    """A small cube of atoms in a long cell: one of two ranks owns none of them."""
    atoms = cube()
    return Atoms(atoms.coord + np.array([shift, 0.0, 0.0]), atoms.kind, np.diag([edge, 13.0, 13.0]))


CASES = {
    "brick": (cube(), ""),
    "tiled": (cube(), "comm_style tiled"),
    "along y": (cube(), "processors 1 * 1"),
    "along z": (cube(), "processors 1 1 *"),
    "empty, with ghosts": (far_apart(39.0, 0.0), "processors * 1 1"),
    "empty, without ghosts": (far_apart(60.0, 8.0), "processors * 1 1"),
    "triclinic": (triclinic(), ""),
    "open": (cluster(), ""),
    "shrink-wrapped": (dataclasses.replace(cluster(), boundary="s s s"), ""),
}


def assert_equal(run, other, step, factor=1.0):
    """To the tolerances of N ranks against one."""
    scale = max(1.0, abs(other.energy(step)))
    assert abs(run.energy(step) - other.energy(step)) <= factor * 1e-10 * scale
    np.testing.assert_allclose(run.force(step), other.force(step), rtol=0, atol=factor * 1e-10)
    np.testing.assert_allclose(run.virial(step), other.virial(step), rtol=0, atol=factor * 1e-9)
    for names in (STRESS, CENTROID.split()):
        a, b = (each.columns(step, *names) / NKTV2P for each in (run, other))
        np.testing.assert_allclose(a, b, rtol=0, atol=factor * 1e-9)
    a, b = (each.columns(step, "c_energy") for each in (run, other))
    np.testing.assert_allclose(a, b, rtol=0, atol=factor * 1e-10)


def symmetric(shares):
    """LAMMPS keeps six numbers. The virial of a model whose averages point somewhere has nine."""
    return 0.5 * (shares + shares.reshape(-1, 3, 3).swapaxes(1, 2).reshape(-1, 9))


@pytest.fixture(params=["se_a_pt2", "dpa3_pt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("case", ["brick", "triclinic", "open", "shrink-wrapped"])
def test_one_rank_equals_evaluate(lammps, make_script, model, case):
    atoms, _ = CASES[case]
    run = lammps.good(make_script(atoms, model))
    box = atoms.cell if "p" in atoms.boundary else None
    expected = dpmodel.load(model).evaluate(atoms.coord, atoms.kind, box, atomic=True)
    assert np.abs(expected["force"]).max() > 1e-3
    assert abs(run.energy() - expected["energy"].item()) <= 1e-10 * max(1.0, abs(run.energy()))
    np.testing.assert_allclose(run.force(), expected["force"][0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.columns(0, "c_energy"), expected["atom_energy"][0], rtol=0, atol=1e-10)
    virial = symmetric(expected["virial"].reshape(1, 9))[0]
    np.testing.assert_allclose(run.virial(), virial[SYMMETRIC], rtol=0, atol=1e-10 * max(1.0, np.abs(virial).max()))
    shares = expected["atom_virial"].reshape(-1, 9)
    found = -run.columns(0, *CENTROID.split()) / NKTV2P
    np.testing.assert_allclose(found, shares[:, CENTROID_ORDER], rtol=0, atol=1e-10)
    np.testing.assert_allclose(-run.columns(0, *STRESS) / NKTV2P, symmetric(shares)[:, SYMMETRIC], rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(lammps, make_script, model, case):
    """At once, and after five steps with a new neighbour list in each."""
    atoms, before = CASES[case]
    ready = "balance 1.0 rcb" if case == "tiled" else ""
    text = make_script(atoms, model, before=before, ready=ready, after="run 5")
    one, two = lammps.good(text), lammps.good(text, ranks=2)
    assert ("Nlocal" in two.text) and one.frames.keys() == two.frames.keys() == {0, 5}
    assert np.abs(one.force(5) - one.force(0)).max() > 1e-6
    if case.startswith("empty"):
        assert "0 min" in next(line for line in two.text.splitlines() if line.startswith("Nlocal"))
    assert_equal(two, one, 0)
    assert_equal(two, one, 5, factor=10.0)


@pytest.mark.nightly
@pytest.mark.parametrize(("grid", "edge"), [("2 2 1", 0.0), ("4 1 1", 0.0), ("2 2 2", 39.0)])
def test_many_ranks_equal_one(lammps, make_script, model, grid, edge):
    """A chain of slabs thinner than the cutoff, whose ghosts are those of ghosts; eight ranks, half of them empty."""
    atoms, ranks = far_apart(edge, 0.0) if edge else cube(), math.prod(map(int, grid.split()))
    text = make_script(atoms, model, before=f"processors {grid}", after="run 5")
    one, many = lammps.good(text.replace(f"processors {grid}", "")), lammps.good(text, ranks=ranks)
    assert f"{grid.replace(' ', ' by ')} MPI processor grid" in many.text
    assert_equal(many, one, 0)
    assert_equal(many, one, 5, factor=10.0)


@pytest.mark.parametrize("where", ["between", "on a rank of their own", "and move"])
def test_null_atoms_are_not_there(lammps, make_script, dpa3_pt2, where):
    """Types that the model does not know, between its atoms and across the border of two ranks."""
    atoms, before = cube(), ""
    rng = np.random.default_rng(8)
    places = np.concatenate([rng.uniform(0, 13, (12, 3)), atoms.coord[:1] + 1e-9])
    if where == "on a rank of their own":  # which owns no other atoms, and has ghosts of them
        atoms, before = far_apart(39.0, 0.0), "processors * 1 1"
        places += np.array([22.0, 0.0, 0.0])
    extra = Atoms(np.concatenate([atoms.coord, places]), np.concatenate([atoms.kind, np.full(13, 2)]), atoms.cell)
    without = lammps.good(make_script(atoms, dpa3_pt2))
    # By 5 Å in five steps, over the border in both directions.
    after = (
        "group fast type 3\nvariable v atom 2000*(2*(id%2)-1)\nvelocity fast set v_v 0 0\nrun 5"
        if where == "and move"
        else "run 5"
    )
    text = make_script(extra, dpa3_pt2, names="O H NULL", before=before, after=after)
    one, two = lammps.good(text), lammps.good(text, ranks=2)
    assert_equal(two, one, 0)
    assert_equal(two, one, 5, factor=10.0)
    for run in (one, two):
        assert abs(run.energy() - without.energy()) <= 1e-10 * abs(without.energy())
        np.testing.assert_allclose(run.force()[:125], without.force(), rtol=0, atol=1e-10)
        for step in (0, 5):
            assert not run.force(step)[125:].any()
            assert not run.columns(step, "c_energy", *STRESS)[125:].any()


def test_float32(lammps, make_script, dpa3_float32_pt2):
    atoms = cube()
    text = make_script(atoms, dpa3_float32_pt2, centroid=False, after="run 5").replace("c_virial[", "c_energy #")
    text = text.replace("compute virial all stress/atom NULL pair", "")
    one, two = lammps.good(text), lammps.good(text, ranks=2)
    expected = dpmodel.load(dpa3_float32_pt2).evaluate(atoms.coord, atoms.kind, atoms.cell)
    np.testing.assert_allclose(one.force(), expected["force"][0], rtol=0, atol=1e-5)
    for step in (0, 5):
        assert abs(two.energy(step) - one.energy(step)) <= 1e-5 * abs(one.energy(step))
        np.testing.assert_allclose(two.force(step), one.force(step), rtol=0, atol=1e-4)
        np.testing.assert_allclose(two.virial(step), one.virial(step), rtol=0, atol=5e-4)


PROGRAM = """
import numpy as np
from mpi4py import MPI
import dpmodel
from dpmodel.backends.pt.bridge import to_torch
from dpmodel.backends.pt_expt import OVERRIDES
from dpmodel.backends.pt_expt.ghosts import decompose, mpi, slabs
from dpmodel.geometry import GraphBuilder

world = MPI.COMM_WORLD
model = dpmodel.load("MODEL").model
given = np.load("atoms.npz")
coord, cell = given["coord"], given["cell"]
graph = GraphBuilder(model.requests(), model.ntypes).build(coord[None], given["kind"][None], cell[None])
part = decompose(graph, coord, cell, slabs(coord, cell, world.size), world.size)[world.rank]
outputs = mpi.evaluate(to_torch(model, overrides=OVERRIDES), part, world)
if world.rank == 0:
    np.savez("outputs.npz", **outputs)
"""


def test_two_ranks_equal_two_ranks_of_python(lammps, make_script, dpa3_pt2, tmp_path):
    """Two programs that share the operator and nothing else: LAMMPS's ghosts and communication, and those of mpi4py."""
    atoms = cube()
    np.savez(tmp_path / "atoms.npz", coord=atoms.coord, kind=atoms.kind, cell=atoms.cell)
    (tmp_path / "program.py").write_text(PROGRAM.replace("MODEL", str(dpa3_pt2.with_suffix(".dp"))))
    lammps.good("", ranks=2, command=[sys.executable, "-W", "ignore", "program.py"])
    expected = np.load(tmp_path / "outputs.npz")
    run = lammps.good(make_script(atoms, dpa3_pt2), ranks=2)
    assert abs(run.energy() - expected["energy"].item()) <= 1e-10 * max(1.0, abs(run.energy()))
    np.testing.assert_allclose(run.force(), expected["force"].reshape(-1, 3), rtol=0, atol=1e-10)
    virial = symmetric(expected["virial"].reshape(1, 9))[0]
    np.testing.assert_allclose(run.virial(), virial[SYMMETRIC], rtol=0, atol=1e-10 * max(1.0, np.abs(virial).max()))
