"""Type embeddings: electron configurations, skip connections, the row of virtual atoms."""

from __future__ import annotations

import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.nn import MLP, Linear, make_type_embedding, type_embedding
from dpmodel.nn.type_embedding import TypeEmbedding, electron_configurations

SHELLS = [
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
]
WIDTHS = {"s": 1, "p": 3, "d": 5, "f": 7}


def electrons(symbol: str) -> dict[str, int]:
    """Electrons of every shell that has any, counted from the table."""
    row = electron_configurations((symbol,))[0].reshape(59, 2) * np.sqrt(118)
    assert {-1.0, 1.0} >= set(np.unique(np.round(row, 12)))
    number = ((np.round(row) + 1) // 2).sum(axis=1).astype(int)  # (-1, -1): 0, (-1, 1): 1, (1, 1): 2
    assert (row[number == 1] < 0).argmax(axis=1).tolist() == [0] * (number == 1).sum()
    out, at = {}, 0
    for shell in SHELLS:
        width = WIDTHS[shell[1]]
        inside = number[at : at + width]
        assert (np.diff(inside) <= 0).all()  # each orbital gets one electron before the first gets two
        if inside.sum():
            assert inside.sum() <= width or inside.min() == 1 or inside.sum() == 2 * width
            out[shell] = int(inside.sum())
        at += width
    assert at == 59
    return out


@pytest.mark.parametrize(
    ("symbol", "outer"),
    [
        ("H", {"1s": 1}),
        ("O", {"1s": 2, "2s": 2, "2p": 4}),
        ("Fe", {"3d": 6, "4s": 2}),
        ("Cr", {"3d": 5, "4s": 1}),
        ("Cu", {"3d": 10, "4s": 1}),
        ("Nb", {"4d": 4, "5s": 1}),
        ("Pd", {"4d": 10, "5s": 0}),
        ("La", {"4f": 0, "5d": 1, "6s": 2}),
        ("Ce", {"4f": 1, "5d": 1}),
        ("Gd", {"4f": 7, "5d": 1}),
        ("Pt", {"5d": 9, "6s": 1}),
        ("Au", {"5d": 10, "6s": 1}),
        ("Th", {"5f": 0, "6d": 2, "7s": 2}),
        ("U", {"5f": 3, "6d": 1}),
        ("Cm", {"5f": 7, "6d": 1}),
        ("Lr", {"5f": 14, "6d": 1, "7s": 2}),
        ("Rg", {"6d": 10, "7s": 1}),
        ("Og", {"6d": 10, "7s": 2, "7p": 6}),
    ],
)
def test_ground_states(symbol: str, outer: dict[str, int]) -> None:
    found = electrons(symbol)
    assert {shell: found.get(shell, 0) for shell in outer} == outer


def test_every_element_has_its_electrons() -> None:
    symbols = type_embedding._SYMBOLS
    assert len(symbols) == len(set(symbols)) == 118
    assert [sum(electrons(symbol).values()) for symbol in symbols] == list(range(1, 119))


def test_oxygen_in_full() -> None:
    """2p4: the first of three orbitals is full, the others hold one electron."""
    row = electron_configurations(("O",))[0] * np.sqrt(118)
    np.testing.assert_allclose(row[:10], [1, 1, 1, 1, 1, 1, -1, 1, -1, 1], rtol=1e-15)
    np.testing.assert_allclose(row[10:], -1.0, rtol=1e-15)


def test_what_is_no_element() -> None:
    with pytest.raises(InputError, match=r"needs the symbols of elements in type_map; \['X', 'oh'\] are none"):
        electron_configurations(("O", "X", "oh"))


def embedding(w: np.ndarray, b: np.ndarray | None = None) -> TypeEmbedding:
    return TypeEmbedding(ntypes=len(w), embedding=MLP(layers=(Linear(w=w, b=b, activation="Linear", resnet=True),)))


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7])
def test_skip_where_the_width_is_that_of_the_types_or_twice_that(width: int) -> None:
    rng = np.random.default_rng(1)
    w, b = rng.normal(size=(3, width)), rng.normal(size=width)
    expected = w + {3: np.eye(3), 6: np.hstack([np.eye(3)] * 2)}.get(width, np.zeros((3, width)))
    np.testing.assert_array_equal(embedding(w).table()[:3], expected)
    np.testing.assert_array_equal(embedding(w, b).table()[:3], w + b + (expected - w))


def test_virtual_atoms_have_a_row_of_zeros() -> None:
    op = embedding(np.ones((3, 4)), np.full(4, 0.5))
    rows = op(np.array([2, -1, 0, -1]))
    assert rows.tolist() == [[1.5] * 4, [0.0] * 4, [1.5] * 4, [0.0] * 4]
    assert op(np.zeros((0,), np.int64)).shape == (0, 4)
    assert op.dim_out == 4


@pytest.mark.parametrize("width", [7, 118, 236])
def test_configurations_are_the_input_of_the_net(width: int) -> None:
    op = make_type_embedding(2, width, seed=3, dtype="float64", bias=True, type_map=("Cu", "O"))
    layer = op.embedding.layers[0]
    table = electron_configurations(("Cu", "O"))
    skip = {118: table, 236: np.hstack([table, table])}.get(width, 0.0)
    assert layer.w.shape == (118, width)
    np.testing.assert_allclose(op.table()[:2], table @ layer.w + layer.b + skip, rtol=1e-14)
    assert not op.table()[2].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fresh_ones(dtype: str) -> None:
    op = make_type_embedding(3, 5, seed=2, dtype=dtype, trainable=False)
    assert op.embedding.layers[0].b is None
    assert op.configurations is None
    assert not op.embedding.layers[0].trainable
    assert op.table().dtype == dtype
    assert make_type_embedding(3, 5, seed=2, dtype=dtype, type_map=("O", "H", "C")).table().dtype == dtype
