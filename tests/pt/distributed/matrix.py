"""The matrix {stage} x {single, multi-task} x {EMA} x {optimizer}, and what of it runs every time.

`python tests/pt/distributed/matrix.py` prints it.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

STAGES = (0, 1, 2, 3)
OPTIMIZERS = ("Adam", "AdamW", "HybridMuon", "AdaMuon")


class Cell(NamedTuple):
    """A way to train, and the stage in which it goes on."""

    stage: int
    multi: bool
    ema: bool
    optimizer: str

    @property
    def then(self) -> int:
        """Every pair of stages comes, in the normal run too; the same one has tests of its own in test_runs.py."""
        return (self.stage + 1 + OPTIMIZERS.index(self.optimizer) % 3) % 4

    @property
    def often(self) -> bool:
        """Whether it is in the normal run: all pairs of values of two columns are (all stages with all optimizers)."""
        k = OPTIMIZERS.index(self.optimizer)
        return self.multi == bool((self.stage + k) % 2) and self.ema == bool((self.stage // 2 + k) % 2)

    def __str__(self) -> str:
        words = "several tasks" if self.multi else "one task", "average" if self.ema else "no average"
        return f"stage {self.stage} -> {self.then}, {words[0]}, {words[1]}, {self.optimizer}"


CELLS = tuple(Cell(*values) for values in itertools.product(STAGES, (False, True), (False, True), OPTIMIZERS))


def table() -> str:
    """The matrix as text; * marks what the normal run has."""
    return "\n".join(f"{'*' if cell.often else ' '} {cell}" for cell in CELLS)


if __name__ == "__main__":
    print(table())  # noqa: T201
