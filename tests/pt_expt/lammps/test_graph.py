"""The graph that the plugin builds is the one that Python builds, wherever `sel`, exclusions and types decide it."""

from __future__ import annotations

import warnings

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
