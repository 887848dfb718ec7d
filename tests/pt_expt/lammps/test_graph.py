"""The graph that the plugin builds is the one that Python builds, wherever `sel`, exclusions and types decide it."""

from __future__ import annotations

import dataclasses
import json
import warnings
import zipfile

import numpy as np
import pytest

from dpmodel.geometry import GraphBuilder
from dpmodel.graph import AngleRequest, NeighbourRequest, sized

from .conftest import Atoms, changed, cube
from .test_numbers import triclinic

REQUESTS = (
    NeighbourRequest(rcut=4.0, sel=(9,), layout="slots"),
    NeighbourRequest(rcut=3.6, sel=(4, 6), layout="typed_slots"),
    NeighbourRequest(rcut=4.0, sel=(300,), layout="edges", angles=AngleRequest(rcut=3.1, sel=5)),
    NeighbourRequest(rcut=3.0, sel=(100, 100), layout="typed_slots"),
    NeighbourRequest(rcut=3.8, sel=(7,), layout="edges"),
)


def as_json(request):
    angles = request.angles
    return {
        "rcut": request.rcut, "sel": list(request.sel), "layout": request.layout,
        "angles": None if angles is None else {"rcut": angles.rcut, "sel": angles.sel},
    }  # fmt: skip


SPIN_SCALES = [0.3, -0.2]


def spins(atoms: Atoms) -> Atoms:
    return dataclasses.replace(atoms, spin=np.random.default_rng(6).normal(size=atoms.coord.shape))


def read_dump(path):
    arrays = {}
    for line in path.read_text().splitlines():
        name, ndim, *words = line.split()
        shape = tuple(map(int, words[: int(ndim)]))
        arrays[name] = np.array(words[int(ndim) :], dtype=float).reshape(shape)
    return arrays


def virtual(atoms: Atoms) -> Atoms:
    """Three types, the last of which the model does not know."""
    kind = atoms.kind.copy()
    kind[::5] = 2
    return Atoms(atoms.coord, kind, atoms.cell, atoms.boundary)


def metadata_of(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(next(name for name in archive.namelist() if name.endswith("dpmodel.json"))))


@pytest.mark.parametrize("atoms", [cube(), virtual(cube()), triclinic()], ids=["cube", "NULL", "triclinic"])
@pytest.mark.parametrize("excluded", [(), ((0, 1),)])
def test_equal_to_python(lammps, make_script, se_a_pt2, tmp_path, atoms, excluded):
    """A model that asks for every layout: its code is that of another model and is not run, the graph is written first."""
    keys = {
        "requests": [as_json(r) for r in REQUESTS], "pair_exclude_types": [list(p) for p in excluded], "group_by_type": True,
    }  # fmt: skip
    changed(se_a_pt2, tmp_path / "other.pt2", **keys)
    names = "O H NULL" if atoms.kind.max() == 2 else "O H"
    text = make_script(atoms, "other.pt2", names=names, before="atom_modify sort 0 0.0")
    lammps.run(text, env={"DPMODEL_TEST_DUMP": str(tmp_path / "dump")})
    found = read_dump(tmp_path / "dump")

    types = np.where(atoms.kind == 2, -1, atoms.kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sel is too small on purpose
        graph = GraphBuilder(requests=REQUESTS, ntypes=2, exclude_pairs=excluded, group_by_type=True).build(
            atoms.coord[None], types[None], atoms.cell[None]
        )
    expected = {leaf.path: leaf.array for leaf in sized(graph)}
    assert found.keys() - {"comm.handle"} == expected.keys()
    n = len(atoms.coord)
    for name, array in expected.items():
        if name in ("atype", "neighbour", "edge_vec"):
            continue
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    np.testing.assert_allclose(found["edge_vec"], expected["edge_vec"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found["atype"][:n], expected["atype"])
    # LAMMPS's ghosts stand behind the atoms: who they are follows from where they are.
    owner = found["neighbour"].astype(int)
    inside = owner < n
    np.testing.assert_array_equal(owner[inside], expected["neighbour"][inside])
    np.testing.assert_array_equal(found["atype"][owner], expected["atype"][expected["neighbour"]])


@pytest.mark.parametrize("atoms", [cube(), virtual(cube()), triclinic()], ids=["cube", "NULL", "triclinic"])
def test_virtual_atoms_equal_those_of_python(lammps, make_script, se_a_pt2, tmp_path, atoms):
    """Both of every atom see both of every neighbour, those further away than the cutoff from the atoms themselves too."""
    atoms = spins(atoms)
    requests = (REQUESTS[0], REQUESTS[2], dataclasses.replace(REQUESTS[1], sel=(4, 6, 5, 3)))
    outputs = metadata_of(se_a_pt2)["outputs"]
    keys = {
        "requests": [as_json(r) for r in requests], "pair_exclude_types": [[1, 3]], "group_by_type": True, "graph_types": 4,
        "spin_scales": SPIN_SCALES, "outputs": [*outputs, {**outputs[-1], "name": "force_mag"}], "dim_aparam": 2,
    }  # fmt: skip
    changed(se_a_pt2, tmp_path / "other.pt2", **keys)
    names = "O H NULL" if atoms.kind.max() == 2 else "O H"
    style = "dpmodel other.pt2 aparam 1.5 -2.0"
    text = make_script(atoms, "other.pt2", names=names, style=style, before="atom_modify sort 0 0.0")
    lammps.run(text, env={"DPMODEL_TEST_DUMP": str(tmp_path / "dump")})
    found = read_dump(tmp_path / "dump")

    types = np.where(atoms.kind == 2, -1, atoms.kind)
    builder = GraphBuilder(
        requests=requests, ntypes=4, exclude_pairs=((1, 3),), group_by_type=True, spin_scales=tuple(SPIN_SCALES)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sel is too small on purpose
        aparam = np.tile([1.5, -2.0], (1, len(types), 1))
        graph = builder.build(atoms.coord[None], types[None], atoms.cell[None], spin=atoms.spin[None], aparam=aparam)
    expected = {leaf.path: leaf.array for leaf in sized(graph)}
    assert found.keys() - {"comm.handle"} == expected.keys()
    n, s = 2 * len(atoms.coord), len(atoms.coord)
    assert np.any(expected["neighbour"] >= s)
    of_ghosts = ("virtual.real", "virtual.virtual", "virtual.shift", "virtual.scale", "virtual.frame")
    for name, array in expected.items():
        if name in ("atype", "neighbour", "edge_vec"):
            continue
        ours = found[name][:s] if name in of_ghosts else found[name]
        np.testing.assert_allclose(ours, array, rtol=0, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(found["edge_vec"], expected["edge_vec"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found["atype"][:n], expected["atype"])
    owner = found["neighbour"].astype(int)
    inside = owner < n
    np.testing.assert_array_equal(owner[inside], expected["neighbour"][inside])
    np.testing.assert_array_equal(found["atype"][owner], expected["atype"][expected["neighbour"]])
    # Ghosts come in pairs too: a real atom and the one that is displaced from it.
    real, moved = (found[f"virtual.{name}"][s:].astype(int) for name in ("real", "virtual"))
    assert sorted([*real, *moved]) == list(range(n, len(found["atype"])))
    seen = found["atype"][real] >= 0
    np.testing.assert_array_equal(found["atype"][moved][seen], found["atype"][real][seen] + 2)
    np.testing.assert_array_equal(
        found["virtual.scale"][s:][seen], np.array(SPIN_SCALES)[found["atype"][real][seen].astype(int)]
    )


def test_parameters(lammps, make_script, se_a_pt2, tmp_path):
    """Those of the command, else the model's own; every owned atom has a row. The code has no use for them."""
    keys = {
        "dim_fparam": 2, "default_fparam": [0.25, -1.5], "dim_aparam": 3, "charge_spin": True, "default_charge_spin": [2.0, 3.0],
    }  # fmt: skip
    changed(se_a_pt2, tmp_path / "other.pt2", **keys)
    atoms = virtual(cube())
    for options, fparam, charge_spin in (
        ("aparam 1 2 -3.5", [0.25, -1.5], [2, 3]),
        ("fparam 4 5e-1 charge_spin -1 2 aparam 1 2 -3.5", [4, 0.5], [-1, 2]),
    ):
        text = make_script(atoms, "", names="O H NULL", style=f"dpmodel other.pt2 {options}")
        lammps.good(text, env={"DPMODEL_TEST_DUMP": str(tmp_path / "dump")})
        found = read_dump(tmp_path / "dump")
        np.testing.assert_array_equal(found["fparam"], [fparam])
        np.testing.assert_array_equal(found["charge_spin"], [charge_spin])
        np.testing.assert_array_equal(found["aparam"], np.tile([1, 2, -3.5], (len(atoms.coord), 1)))
    for options, message in (
        ("", "this model needs aparam: pair_style dpmodel other.pt2 aparam v ..."),
        ("aparam 1 2", "aparam expects 3 number(s) for this model, got 2"),
        ("aparam 1 2 3 fparam 1 2 3", "fparam expects 2 number(s) for this model, got 3"),
    ):
        run = lammps.run(make_script(atoms, "", names="O H NULL", style=f"dpmodel other.pt2 {options}"))
        assert run.status != 0 and message in run.text, run.text[-2000:]
