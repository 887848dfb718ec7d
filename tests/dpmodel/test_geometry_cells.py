"""Cells: what is accepted, face distances, completion of open axes, wrapping."""

import array_api_strict
import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.geometry.cells import check_coord, check_pbc, make_lattice, wrap

TILTED = np.array([[10.0, 0.0, 0.0], [35.0, 9.0, 0.0], [-27.0, 44.0, 8.0]])


@pytest.mark.parametrize("given", [True, (1, 1, 1), [True, True, True], np.ones(3, bool)])
def test_pbc_from_one_or_three(given):
    assert check_pbc(given) == (True, True, True)


@pytest.mark.parametrize("given", [(True, True), 2, "ppp", None, (0.5, 1, 1)])
def test_bad_pbc_is_refused(given):
    with pytest.raises(InputError, match="pbc must be"):
        check_pbc(given)


def test_open_boundaries_are_no_lattice():
    assert make_lattice(None, True) is None
    assert make_lattice(np.eye(3), False) is None
    assert make_lattice(np.zeros((3, 3)), False) is None


@pytest.mark.parametrize("cell", [TILTED, TILTED * [[1], [1], [-1]], TILTED[[1, 0, 2]]])
def test_heights_are_distances_between_faces(cell):
    lattice = make_lattice(cell)
    # The face distance of axis k is the length of the projection of its vector on the normal of the other two.
    for k in range(3):
        normal = np.cross(cell[(k + 1) % 3], cell[(k + 2) % 3])
        assert lattice.heights[k] == pytest.approx(abs(cell[k] @ normal) / np.linalg.norm(normal), rel=1e-12)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (True, False, False), (False, True, True)])
@pytest.mark.parametrize("filler", [0.0, 3.7])
def test_open_axes_are_completed_by_orthogonal_unit_vectors(pbc, filler):
    flags = np.array(pbc)
    cell = np.where(flags[:, None], TILTED, filler)
    vectors = make_lattice(cell, pbc).vectors
    np.testing.assert_array_equal(vectors[flags], TILTED[flags])
    unit = vectors[~flags]
    np.testing.assert_allclose(unit @ unit.T, np.eye(len(unit)), atol=1e-14)
    np.testing.assert_allclose(unit @ TILTED[flags].T, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("cell", "pbc", "match"),
    [
        (np.zeros((3, 3)), True, "zero or linearly dependent"),
        (np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]]), True, "linearly dependent"),
        (np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]]), (True, True, False), "linearly dependent"),
        (np.diag([1.0, np.nan, 1.0]), True, "NaN"),
        (np.diag([1.0, np.inf, 1.0]), True, "NaN or infinite"),
        (np.ones(9), True, r"shape \(3, 3\)"),
    ],
)
def test_bad_cells_are_refused(cell, pbc, match):
    with pytest.raises(InputError, match=f"^frame 5: .*{match}"):
        make_lattice(cell, pbc, where="frame 5: ")


def test_dependent_vectors_along_open_axes_do_not_matter():
    cell = np.array([[4.0, 0, 0], [8.0, 0, 0], [0, 0, 0]])
    assert make_lattice(cell, (True, False, False)) is not None


@pytest.mark.parametrize("convert", [np.asarray, array_api_strict.asarray])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True)])
def test_wrapping_moves_along_periodic_axes_only(convert, pbc):
    lattice = make_lattice(TILTED, pbc)
    coord = np.random.default_rng(1).uniform(-60, 60, (20, 3))
    wrapped, cells = (np.asarray(x) for x in wrap(convert(coord), lattice))
    flags = np.array(pbc)
    fractional = wrapped @ lattice.inverse
    assert fractional[:, flags].min() > -1e-12
    assert fractional[:, flags].max() < 1 + 1e-12
    assert (cells[:, ~flags] == 0).all()
    np.testing.assert_allclose(wrapped + cells @ lattice.vectors, coord, atol=1e-11)


def test_wrapping_leaves_atoms_inside_alone():
    coord = np.array([[1.0, 2.0, 3.0]])
    wrapped, cells = wrap(coord, make_lattice(5 * np.eye(3)))
    assert cells is None
    assert wrapped is coord


def test_atoms_without_resolution_are_refused():
    with pytest.raises(InputError, match="cells away"):
        wrap(np.array([[1e14, 0.0, 0.0]]), make_lattice(np.eye(3)))


@pytest.mark.parametrize(
    ("coord", "match"),
    [
        (np.zeros(3), "shape"),
        (np.zeros((2, 2)), "shape"),
        (np.zeros((2, 3), int), "floating"),
        (np.array([[0.0, 0, 0], [0, np.nan, 0]]), "atom 1 has NaN"),
    ],
)
def test_bad_coordinates_are_refused(coord, match):
    with pytest.raises(InputError, match=match):
        check_coord(coord)
