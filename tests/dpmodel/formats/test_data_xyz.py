"""Extended XYZ files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpmodel.data import Dataset, LabelRequest, Sampler, labels, open_systems
from dpmodel.errors import DataError, InputError

from . import written as formats
from .written import (
    ALL,
    CELL,
    MAP,
    refused,
)


def frame(comment, *columns, symbols="HOH", coord=None):
    coord = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1.5, 0.5]]) if coord is None else coord
    return formats.xyz_frame(list(symbols), coord, comment, *columns)


def opened(tmp_path, text, requests=ALL, **options):
    (tmp_path / "a.xyz").write_text(text)
    return open_systems(tmp_path / "a.xyz", MAP, requests, **options)


def test_stress_becomes_virial(tmp_path):
    """ASE: stress = virial of the forces / -volume, as dpmodel.metrics has it."""
    rng = np.random.default_rng(0)
    full = rng.normal(size=(3, 3))
    full += full.T
    volume = abs(np.linalg.det(CELL))
    text = frame(f'{formats.lattice(CELL)} stress="{" ".join(map(repr, map(float, full.reshape(-1))))}"')
    (found,) = opened(tmp_path, text)
    np.testing.assert_allclose(found.batch(np.array([0])).labels["virial"], [-volume * full.reshape(-1)], rtol=1e-14)
    both = f'{formats.lattice(CELL)} stress="1 0 0 0 1 0 0 0 1" virial="1 2 3 4 5 6 7 8 9"'
    (found,) = opened(tmp_path, frame(both))
    np.testing.assert_array_equal(found.batch(np.array([0])).labels["virial"], [[1, 4, 7, 2, 5, 8, 3, 6, 9]])


def test_stress_of_a_model_through_ase(tmp_path):
    """What our own calculator writes to a file comes back as the model's virial."""
    ase = pytest.importorskip("ase")
    from ase.io import write

    import dpmodel
    from dpmodel.ase import Calculator

    model = Path(__file__).parents[2] / "data" / "golden" / "se_e2_a.dp"
    potential = dpmodel.load(model, "pt")
    names = [potential.type_map[k] for k in (0, 1, 1, 0)]
    rng = np.random.default_rng(4)
    atoms = ase.Atoms(names, positions=4 * rng.random((4, 3)) + np.arange(4)[:, None], cell=CELL, pbc=True)
    atoms.calc = Calculator(potential)
    atoms.get_stress(), atoms.get_forces()
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    (found,) = open_systems(tmp_path / "a.xyz", potential.type_map, (labels.ENERGY, labels.FORCE, labels.VIRIAL))
    batch = found.batch(np.array([0]))
    expected = potential.evaluate(batch.coord, batch.atype, batch.cell)
    for name in ("energy", "force", "virial"):
        assert found.found[name]
        np.testing.assert_allclose(batch.labels[name], expected[name], rtol=1e-6, atol=1e-6)
    assert abs(expected["virial"]).max() > 1e-2


def test_composition_and_boundaries_make_systems(tmp_path):
    cell = formats.lattice(CELL)
    text = (
        frame(f"{cell} energy=1")
        + frame("energy=2")
        + frame(f"{cell} energy=3", symbols="OOH")
        + frame(f'{cell} energy=4 pbc="T T F"')
        + frame(f'{cell} energy=5 pbc="F F F"')
        + frame(f"{cell} energy=6", symbols="HO", coord=np.eye(3)[:2])
        + frame(f"{cell}")
    )
    found = opened(tmp_path, text)
    assert [(s.natoms, s.nframes, s.pbc, s.mixed, s.found["energy"]) for s in found] == [
        (3, 2, True, True, 1), (3, 2, False, False, 1), (3, 1, (True, True, False), False, 1),
        (2, 1, True, False, 1), (3, 1, True, False, 0),
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0].batch(np.arange(2)).atype, [[2, 1, 2], [1, 1, 2]])
    assert "TTF" in Dataset.from_config(tmp_path / "a.xyz", type_map=MAP, labels=ALL).summary()


def test_partial_periodicity_arrives_in_graphs_and_counts(tmp_path):
    """Two atoms across the face of a cell are neighbours only where it is periodic."""
    from dpmodel.geometry.build import GraphBuilder, NeighbourRequest
    from dpmodel.statistics.neighbour import neighbour_statistics
    from dpmodel.training.batches import prepare

    cell, coord = 10 * np.eye(3), np.array([[5.0, 5, 0.2], [5, 5, 9.8]])
    counts = {}
    builder = GraphBuilder(requests=(NeighbourRequest(rcut=3.0, sel=(4,), layout="slots"),), ntypes=3)
    for sides in ("T T T", "T T F", "F F T"):
        text = frame(f'{formats.lattice(cell)} energy=1 pbc="{sides}"', symbols="HO", coord=coord)
        (tmp_path / "a.xyz").write_text(text)
        data = Dataset.from_config(tmp_path / "a.xyz", type_map=MAP, labels=(labels.ENERGY,))
        batch = Sampler(data, seed=0).next()
        graph = prepare(batch, builder, frozenset()).graph
        counts[sides] = (len(graph.centre), neighbour_statistics(data, 3.0, 3).total)
        closest = Dataset.from_config(tmp_path / "a.xyz", type_map=MAP, labels=(labels.ENERGY,))
        if sides == "T T F":
            assert closest.frames[0].tolist() == [0]
            kept = Dataset.from_config(tmp_path / "a.xyz", type_map=MAP, min_pair_dist=1.0)
            assert kept.frames[0].tolist() == [0]
        else:
            with pytest.raises(DataError, match="closer than min_pair_dist"):
                Dataset.from_config(tmp_path / "a.xyz", type_map=MAP, min_pair_dist=1.0)
    assert counts == {"T T T": (2, 1), "T T F": (0, 0), "F F T": (2, 1)}


def test_flat_cells_with_an_open_side(tmp_path):
    text = frame('Lattice="9 0 0 0 9 0 0 0 0" energy=1 pbc="T T F" stress="1 0 0 0 1 0 0 0 1"')
    (found,) = opened(tmp_path, text)
    assert found.pbc == (True, True, False)
    assert found.found["virial"] == 0  # a stress needs a volume


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one frame"),
        ("nonsense\n", "expected the number of atoms at the start of frame 0, got 'nonsense'"),
        (frame("energy=1")[:-25], "ASE cannot read it|incomplete"),
        (frame("energy=1").rsplit("\n", 2)[0] + "\n", "frame 0 is incomplete"),
        (frame("energy=1") + "\n" + frame("energy=1"), "empty line after frame 0"),
        (frame("energy=1").replace("H 0.0", "Qq 0.0"), "ASE cannot read it"),
        (frame("energy=1").replace("H 0.0", "H what"), "ASE cannot read it"),
        (frame("energy=1", symbols="HOC"), "no type C; its type_map is"),
        (frame("energy=nan"), "frame 0: expected finite numbers in 'energy'"),
        (frame('dipole="1 2"'), "frame 0: expected 'dipole' to be 3 numbers, found shape 2"),
        (frame("virial=1"), "ASE cannot read it|expected 'virial'"),
        (frame("energy=T"), "expected 'energy' to be 1 numbers, found True"),
        (frame("energy=np.float64(1.0)"), r"expected 'energy' to be 1 numbers, found 'np.float64\(1.0\)'"),
        (frame('Lattice="9 0 0 9 0 0 0 0 9"'), "cell with a volume"),
        (frame('Lattice="0 0 0 0 9 0 0 0 9" pbc="T T F"'), "periodic cell vectors are zero"),
        (frame("energy=1 Properties=species:S:1:pos:R:3:forces:R:1", np.ones((3, 1))), "'forces' to be 9 numbers"),
        (frame("energy=1 numb_copy=-1"), "numb_copy: expected integers of at least 0"),
        (frame("energy=1").replace("0.0 0.0 0.0", "nan 0.0 0.0"), "finite numbers in 'coord'"),
    ],
)  # fmt: skip
def test_bad_xyz(tmp_path, text, message):
    (tmp_path / "a.xyz").write_text(text)
    wanted = (*ALL, LabelRequest(name="energy", required=True))[1:]
    with pytest.raises(DataError, match=message):
        Dataset.from_config(tmp_path / "a.xyz", type_map=MAP, labels=wanted).require()


def test_xyz_that_is_no_text(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"\xff\xfe\x00")
    refused(str(tmp_path / "a.xyz"), "readable XYZ file")


NAMES = {"energy": "REF_energy", "force": "REF_forces", "stress": "REF_stress"}


def test_labels_under_other_names(tmp_path, caplog):
    """What the file calls energy and forces otherwise, from a cheaper method, is not read."""
    columns = "Properties=species:S:1:pos:R:3:forces:R:3:REF_forces:R:3"
    both = 'energy=5 REF_energy=2 virial="9 9 9 9 9 9 9 9 9" REF_stress="1 0 0 0 1 0 0 0 1"'
    own = np.array([[0.0, 0, 1], [1, 0, 1], [2, 0, 1]])
    text = frame(f"{formats.lattice(CELL)} {columns} {both}", np.full((3, 3), 7.0), own)
    (found,) = opened(tmp_path, text, label_names=NAMES)
    batch = found.batch(np.array([0]))
    assert batch.labels["energy"].item() == 2
    np.testing.assert_array_equal(np.sort(batch.labels["force"][0, :, 0]), [0, 1, 2])
    np.testing.assert_allclose(batch.labels["virial"][0], -abs(np.linalg.det(CELL)) * np.eye(3).ravel(), rtol=1e-12)
    (plain,) = opened(tmp_path, text)
    assert plain.batch(np.array([0])).labels["energy"].item() == 5
    caplog.clear()
    (plural,) = opened(tmp_path, text, label_names={"force": "forces"})
    assert plural.found["force"] == 1.0 and not caplog.text
    # A label that the file does not have under that name is not there.
    (found,) = opened(tmp_path, text, label_names={"energy": "DFT_energy"})
    assert found.found["energy"] == 0.0
    assert "no frame has DFT_energy, which label_names asks for" in caplog.text


def test_tables_of_names_that_do_not_fit(tmp_path):
    (tmp_path / "a.xyz").write_text(frame("REF_energy=1"))
    given = {"type_map": MAP, "labels": ALL}
    with pytest.raises(InputError, match=r"label_names\.forces: expected a label, one of .*; did you mean force\?"):
        Dataset.from_config(tmp_path / "a.xyz", **given, label_names={"forces": "REF_forces"})
    with pytest.raises(InputError, match=r"label_names\.energy: expected what the files call it, a text, got 3"):
        Dataset.from_config(tmp_path / "a.xyz", **given, label_names={"energy": 3})
    folder = Path(__file__).parents[3] / "examples" / "water" / "data" / "data_0"
    with pytest.raises(InputError, match="label_names: it is for extended XYZ files, and there is none among"):
        Dataset.from_config(folder, type_map=["O", "H"], labels=(labels.ENERGY,), label_names=NAMES)


def test_tensors_of_atoms(tmp_path):
    """Nine numbers per atom are columns of one property."""
    columns = "Properties=species:S:1:pos:R:3:atomic_polarizability:R:9"
    values = np.random.default_rng(0).random((3, 9))
    request = LabelRequest(name="atom_polarizability", shape=(3, 3), atomic=True)
    text = frame(f"{formats.lattice(CELL)} {columns}", values)
    (found,) = opened(tmp_path, text, (request,), sort_atoms=False)
    batch = found.batch(np.array([0]))
    np.testing.assert_allclose(batch.labels[request.name][0], values.reshape(3, 3, 3), rtol=1e-7)
