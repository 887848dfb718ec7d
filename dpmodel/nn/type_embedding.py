"""Embedding of atom types: a trained row per type, or a net on the electron configurations of the elements.

A dense layer with a skip connection acts on a table with one row per type: the identity, or the table of
`electron_configurations`. A row of zeros follows, which virtual atoms take.
"""

from __future__ import annotations

import numpy as np

from dpmodel.errors import InputError
from dpmodel.nn.mlp import MLP, Linear, Seed, make_linear
from dpmodel.op import Array, Op, buffer, child
from dpmodel.ops import array_namespace, as_dtype, device_of, take_rows
from dpmodel.type_map import TypeChange

__all__ = ["TypeEmbedding", "electron_configurations", "make_type_embedding"]


class TypeEmbedding(Op):
    """Features of atom types."""

    ntypes: int
    embedding: MLP = child()
    configurations: Array | None = buffer(default=None)
    """(ntypes, 118): input of the net instead of the identity."""

    @property
    def dim_out(self) -> int:
        """Width of a row."""
        return int(self.embedding.layers[-1].w.shape[1])

    def call(self, atype: Array) -> Array:
        """(...,) integer -> (..., dim_out); a row of zeros for -1."""
        xp = array_namespace(atype)
        table = self.table()
        return take_rows(table, xp.where(atype < 0, xp.full_like(atype, self.ntypes), atype))

    def table(self) -> Array:
        """(ntypes + 1, dim_out): the rows of all types, then zeros."""
        w = self.embedding.layers[0].w[...]
        xp = array_namespace(w)
        if self.configurations is None:
            rows = self.embedding(xp.eye(self.ntypes, dtype=w.dtype, device=device_of(w)))
        else:
            rows = self.embedding(as_dtype(self.configurations[...], w.dtype))
        return xp.concat([rows, xp.zeros_like(rows[:1, :])], axis=0)

    def with_types(self, change: TypeChange) -> TypeEmbedding:
        """A copy for other types (NumPy). Rows of types that stay are kept; those of new ones are random.

        The layer has a skip connection where its widths allow one, which a change of their number may make or end.
        Raises InputError for new types that are no elements, where configurations are the input.
        """
        if self.configurations is not None:
            table = electron_configurations(change.new).astype(np.asarray(self.configurations).dtype)
            return self.replace(ntypes=len(change.new), configurations=table)
        layer = self.embedding.layers[0]
        w = np.asarray(layer.w)
        before, after = (_skip(layer, n, w.shape[1]) for n in (len(change.old), len(change.new)))
        if (before.any() or after.any()) and (
            layer.idt is not None or layer.activation.lower() not in ("none", "linear")
        ):
            raise InputError(
                "type_map: the type embedding has a skip connection around an activation; its rows cannot change"
            )
        rows = change.random_rows(w.shape[1])
        for k, source in enumerate(change.sources):
            if source is not None:
                rows[k] = (w + before)[source] if before.any() or after.any() else w[source]
        layer = layer.replace(w=(rows - after).astype(w.dtype))
        return self.replace(ntypes=len(change.new), embedding=self.embedding.replace(layers=(layer,)))


def _skip(layer: Linear, n_in: int, width: int) -> np.ndarray:
    """(n_in, width): what the skip connection adds to the rows of an identity."""
    times = {n_in: 1, 2 * n_in: 2}.get(width, 0) if layer.resnet else 0
    return np.tile(np.eye(n_in), (1, times)) if times else np.zeros((n_in, width))


def make_type_embedding(
    ntypes: int, width: int, *, seed: Seed, dtype: str, bias: bool = False, trainable: bool = True,
    type_map: tuple[str, ...] | None = None,
) -> TypeEmbedding:  # fmt: skip
    """One random linear layer. type_map: symbols of elements, where electron configurations are its input.

    Raises InputError for a type that is no element, if configurations are asked for.
    """
    table = None if type_map is None else electron_configurations(type_map).astype(dtype)
    layer = make_linear(
        ntypes if table is None else table.shape[1], width, seed=seed, dtype=dtype, activation="Linear", resnet=True,
        bias=bias, trainable=trainable,
    )  # fmt: skip
    return TypeEmbedding(ntypes=ntypes, embedding=MLP(layers=(layer,)), configurations=table)


# --- electron configurations -------------------------------------------------------------------------------

_SYMBOLS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo
Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl
Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
""".split()  # noqa: SIM905 - a list of 118 literals reads worse
_SHELLS = (
    "1s",
    "2s",
    "2p",
    "3s",
    "3p",
    "3d",
    "4s",
    "4p",
    "4d",
    "4f",
    "5s",
    "5p",
    "5d",
    "5f",
    "6s",
    "6p",
    "6d",
    "7s",
    "7p",
)
_EXCEPTIONS = {
    "Cr": "3d5 4s1", "Cu": "3d10 4s1", "Nb": "4d4 5s1", "Mo": "4d5 5s1", "Ru": "4d7 5s1", "Rh": "4d8 5s1",
    "Pd": "4d10 5s0", "Ag": "4d10 5s1", "La": "4f0 5d1", "Ce": "4f1 5d1", "Gd": "4f7 5d1", "Pt": "5d9 6s1",
    "Au": "5d10 6s1", "Ac": "5f0 6d1", "Th": "5f0 6d2", "Pa": "5f2 6d1", "U": "5f3 6d1", "Np": "5f4 6d1",
    "Cm": "5f7 6d1", "Ds": "6d9 7s1", "Rg": "6d10 7s1",
}  # fmt: skip
"""Ground states that do not fill their shells in the order of n + l, then n."""


def electron_configurations(type_map: tuple[str, ...]) -> np.ndarray:
    """(ntypes, 118): two numbers of +-1/sqrt(118) per orbital of 1s to 7p; empty (-,-), half filled (-,+), full (+,+).

    Raises InputError naming symbols that are no elements.
    """
    wrong = [name for name in type_map if name not in _SYMBOLS]
    if wrong:
        raise InputError(f"use_econf_tebd needs the symbols of elements in type_map; {wrong} are none")
    rows = []
    for name in type_map:
        filled = _occupation(name)
        orbitals: list[int] = []
        for shell in _SHELLS:
            electrons, count = filled.get(shell, 0), 2 * "spdf".index(shell[1]) + 1
            orbitals += [int(k < electrons) + int(k < electrons - count) for k in range(count)]
        rows.append([value for n in orbitals for value in ((-1, -1), (-1, 1), (1, 1))[n]])
    table: np.ndarray = np.asarray(rows, np.float64).reshape(len(type_map), -1)
    return table / np.sqrt(table.shape[1])


def _occupation(name: str) -> dict[str, int]:
    """Electrons by shell."""
    left, filled = _SYMBOLS.index(name) + 1, {}
    for shell in sorted(_SHELLS, key=lambda s: (int(s[0]) + "spdf".index(s[1]), int(s[0]))):
        room = 2 * (2 * "spdf".index(shell[1]) + 1)
        filled[shell] = min(left, room)
        left -= filled[shell]
    filled.update({item[:2]: int(item[2:]) for item in _EXCEPTIONS.get(name, "").split()})
    return filled
