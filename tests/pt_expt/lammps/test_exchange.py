"""The exchange through LAMMPS's communication, without a model: copies are exact, and reverse is the adjoint."""

from __future__ import annotations

import re

import pytest

from .conftest import cube

TILED = ("comm_style tiled", "balance 1.0 rcb")
BRICK = ("", "")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("style", ["brick", "tiled"])
def test_copies_and_adjoint(lammps, make_script, style, ranks, dtype):
    before, balance = TILED if style == "tiled" else BRICK
    text = make_script(
        cube(kinds=1),
        "",
        before=before,
        ready=balance,
        after="",
        coeff="pair_coeff * *",
        style="dpmodel/exchange 3.0 1 float64",
    )
    text = text[: text.index("fix 1")]  # the rest asks for energies
    for width in (1, 7, 64, 128):
        text += f"pair_style dpmodel/exchange 3.0 {width} {dtype}\npair_coeff * *\nrun 1\n"
    run = lammps.good(text, ranks=ranks)
    lines = re.findall(r"EXCHANGE copies=(\S+) adjoint=(\S+) ghosts=(\S+) style=(\S+) complete=(\S+)", run.text)
    assert len(lines) == 8
    for copies, adjoint, ghosts, found, complete in lines:
        assert found == style and complete == "true"
        assert float(ghosts) > 100
        assert float(copies) == 0
        assert float(adjoint) < (1e-12 if dtype == "float64" else 1e-5)
