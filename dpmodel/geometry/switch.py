"""Switch functions and the environment matrix.

With r the distance, rs `rcut_smth`, rc `rcut` and p `protection` (Å), w the switch:

    poly   w = 1 + u^3 (-6 u^2 + 15 u - 10),  u = (clip(r, rs, rc) - rs) / (rc - rs)
    exp    w = exp(-exp(20 (min(r, rc) - rs) / rs))
    row    w(r) (1/(r + p), x/(r + p)^2, y/(r + p)^2, z/(r + p)^2)

The polynomial one falls from 1 to 0 with two continuous derivatives (Zhang et al., DeepPot-SE, NeurIPS 2018);
the exponential one does not vanish at rc, so models that use it are not smooth there.
"""

from __future__ import annotations

from dpmodel.errors import InputError
from dpmodel.op import Array
from dpmodel.ops import array_namespace, safe_norm

__all__ = ["env_mat", "switch_exp", "switch_poly"]

# exp(-exp(80)) is 0 in every precision while exp(80) still fits float32: beyond, 0 * inf would make slopes NaN.
_EXP_LIMIT = 80.0


def switch_poly(r: Array, rs: float, rc: float) -> Array:
    """The polynomial switch of distances `r` (any shape): 1 below `rs`, 0 from `rc` on.

    Raises InputError unless rs < rc.
    """
    _check_range(rs, rc)
    u = (array_namespace(r).clip(r, rs, rc) - rs) / (rc - rs)
    return 1.0 + u * u * u * ((15.0 - 6.0 * u) * u - 10.0)


def switch_exp(r: Array, rs: float, rc: float) -> Array:
    """The exponential switch of distances `r` (any shape); constant from `rc` on.

    Raises InputError unless 0 < rs < rc.
    """
    _check_range(rs, rc)
    if rs <= 0.0:
        raise InputError(f"the exponential switch needs rcut_smth > 0, got {rs}: set it, or use_exp_switch to false")
    xp = array_namespace(r)
    return xp.exp(-xp.exp(xp.clip((20.0 / rs) * (xp.clip(r, 0.0, rc) - rs), None, _EXP_LIMIT)))


def env_mat(
    vec: Array,
    mask: Array,
    rcut: float,
    rcut_smth: float,
    protection: float = 0.0,
    *,
    use_exp_switch: bool = False,
    radial_only: bool = False,
) -> tuple[Array, Array]:
    """Rows of the environment matrix, not normalised, and the switch: (..., 4 or 1), (..., 1).

    vec: (..., 3) displacements, Å. mask: (...,) bool; where it is False both results are 0, whatever `vec` holds,
    and so are their derivatives. Raises InputError for a range that no switch has.
    """
    xp = array_namespace(vec)
    shown = mask[..., None]
    vec = xp.where(shown, vec, xp.ones_like(vec))
    r = safe_norm(vec, keepdims=True)
    switch = (switch_exp if use_exp_switch else switch_poly)(r, rcut_smth, rcut)
    switch = xp.where(shown, switch, xp.zeros_like(switch))
    inverse = 1.0 / (r + protection)
    radial = switch * inverse
    return (radial if radial_only else xp.concat((radial, vec * (radial * inverse)), axis=-1)), switch


def _check_range(rs: float, rc: float) -> None:
    if not rs < rc:
        raise InputError(f"rcut_smth must be below rcut, got rcut_smth = {rs} and rcut = {rc} (Å)")
