"""Energies and forces go on where a neighbour enters the cutoff, if the descriptor says so."""

from __future__ import annotations

import numpy as np

from .cases import each_case, model_of, single, truncates
from .runners import Backend, runner
from .systems import graph_of, random_system


@each_case
def test_smooth_at_the_cutoff(case: str) -> None:
    """An atom moves through every cutoff of every type of neighbour; a little, and little changes."""
    model = model_of(case)
    if truncates(case) or not model.descriptor.is_smooth():
        return
    start = random_system(model, frames=1, atoms=3, virtual=0, periodic=False)
    start = start.replace(coord=np.array([[[0.0, 0.0, 0.0], [0.9, 0.6, 0.2], [0.0, 0.0, 0.0]]]))
    along = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])
    radii = [r.rcut for r in model.requests()] + [r.angles.rcut for r in model.requests() if r.angles is not None]
    for radius in radii:
        for kind in range(model.ntypes):
            results = []
            for distance in (radius - 3e-5, radius - 1e-5, radius + 1e-5):
                coord, atype = start.coord.copy(), start.atype.copy()
                coord[0, 2], atype[0, 2] = distance * along, kind
                results.append(runner(case, Backend.TORCH)(graph_of(model, start.replace(coord=coord, atype=atype))))
            before, inside, outside = results
            for key in ("atom_energy", "force", "virial"):
                expected = 2 * inside[key] - before[key]  # going on as it went
                jump = np.abs(expected - outside[key]).max()
                assert jump <= (1e-4 if single(case) else 1e-6), f"{key} jumps by {jump:.1e} at {radius} Å"
