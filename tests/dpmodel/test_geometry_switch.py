"""Switch functions and the environment matrix against their formulas, and on a strict array library."""

import math

import array_api_strict
import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.geometry import env_mat, switch_exp, switch_poly

RS, RC = 1.0, 4.0


def poly(r):
    u = (min(max(r, RS), RC) - RS) / (RC - RS)
    return 1 + u**3 * (-6 * u**2 + 15 * u - 10)


def expo(r):
    return math.exp(-math.exp(20 / RS * (min(r, RC) - RS))) if 20 / RS * (min(r, RC) - RS) < 700 else 0.0


@pytest.mark.parametrize(("ours", "formula"), [(switch_poly, poly), (switch_exp, expo)])
def test_switches_follow_their_formulas(ours, formula):
    r = np.linspace(0, 6, 121)
    np.testing.assert_allclose(ours(r, RS, RC), [formula(x) for x in r], rtol=1e-13, atol=1e-14)


def test_poly_ends_smoothly():
    assert switch_poly(np.array([0.5, RS, RC, 9.0]), RS, RC).tolist() == [1.0, 1.0, 0.0, 0.0]
    h = 1e-4
    for end, side in ((RS, 1), (RC, -1)):
        a, b, c = switch_poly(np.array([end, end + side * h, end + 2 * side * h]), RS, RC)
        assert abs(b - a) / h < 1e-6
        assert abs(a - 2 * b + c) / h**2 < 1e-2


def test_exp_does_not_vanish_at_the_cutoff():
    r = np.array([0.5, 0.9, 2.0])
    np.testing.assert_allclose(switch_exp(r, 5.0, 6.0)[0], math.exp(-math.exp(20 / 5 * (0.5 - 5))))
    assert switch_exp(np.array([6.0, 7.0]), 5.0, 6.0).tolist() == [math.exp(-math.exp(4.0))] * 2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda r: switch_poly(r, 4.0, 4.0), "rcut_smth must be below rcut"),
        (lambda r: switch_exp(r, 5.0, 4.0), "rcut_smth must be below rcut"),
        (lambda r: switch_exp(r, 0.0, 4.0), "rcut_smth > 0"),
    ],
)
def test_bad_ranges_are_refused(call, match):
    with pytest.raises(InputError, match=match):
        call(np.ones(1))


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("exp", [False, True])
@pytest.mark.parametrize("protection", [0.0, 0.3])
def test_rows_follow_the_formula(radial, exp, protection):
    rng = np.random.default_rng(0)
    vec = rng.normal(size=(5, 4, 3)) * 2
    mask = rng.random((5, 4)) < 0.7
    vec[~mask] = np.array([0.0, np.nan, 1e300])
    matrix, switch = env_mat(vec, mask, RC, RS, protection, use_exp_switch=exp, radial_only=radial)
    assert matrix.shape == (5, 4, 1 if radial else 4)
    assert switch.shape == (5, 4, 1)
    for index in np.ndindex(5, 4):
        if not mask[index]:
            assert not matrix[index].any()
            assert not switch[index].any()
            continue
        d = vec[index]
        r = math.sqrt(d @ d)
        w = (expo if exp else poly)(r)
        row = [w / (r + protection), *(w * d / (r + protection) ** 2)]
        np.testing.assert_allclose(matrix[index], row[:1] if radial else row, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(switch[index], [w], rtol=1e-12, atol=1e-15)


def test_no_rows():
    matrix, switch = env_mat(np.zeros((0, 3)), np.zeros(0, bool), RC, RS)
    assert matrix.shape == (0, 4)
    assert switch.shape == (0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exp", [False, True])
def test_strict_library_and_dtype(dtype, exp):
    vec = np.random.default_rng(1).normal(size=(6, 3)).astype(dtype)
    mask = np.array([True, False] * 3)
    ours = env_mat(array_api_strict.asarray(vec), array_api_strict.asarray(mask), RC, RS, 0.1, use_exp_switch=exp)
    for a, b in zip(ours, env_mat(vec, mask, RC, RS, 0.1, use_exp_switch=exp), strict=True):
        assert np.asarray(a).dtype == b.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(a), b)
