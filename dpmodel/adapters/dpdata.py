"""A driver for dpdata (https://docs.deepmodeling.com/projects/dpdata): label systems with a model.

    import dpdata

    system = dpdata.System("POSCAR", fmt="vasp/poscar")
    labelled = system.predict("model.dp", driver="dpmodel")      # energies, forces, virials

dpdata finds the driver through the entry-point group `dpdata.plugins`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.potential import Potential, check_parameters, load

try:
    from dpdata.driver import Driver
except ModuleNotFoundError as _problem:
    raise ImportError(
        f'dpmodel.adapters.dpdata needs dpdata ({_problem}); install it with: pip install "dpmodel[dpdata]"'
    ) from _problem

__all__ = ["ModelDriver"]


@Driver.register("dpmodel")
class ModelDriver(Driver):
    """Labels systems with a potential. Atoms keep their order; types are matched by symbol."""

    def __init__(
        self,
        model: Potential | str | Path,
        backend: str | None = None,
        device: str | None = None,
        *,
        head: str | None = None,
        **parameters: Any,
    ) -> None:
        """Take a potential, or load one.

        Args:
            model: a potential, or the path of a model file or checkpoint.
            backend: as for `dpmodel.load`, for a path.
            device: as for `dpmodel.load`, for a path.
            head: as for `dpmodel.load`, for a path.
            parameters: fparam, aparam, charge_spin, as for `Potential.evaluate`, for all frames.

        Raises what `dpmodel.load` raises; InputError for models that are not of energies, or take spins, and for unknown
        parameters.
        """
        check_parameters(parameters)
        if isinstance(model, Potential) and (backend is not None or device is not None or head is not None):
            raise InputError("backend, device and head belong to loading; this potential is loaded already")
        self.potential = model if isinstance(model, Potential) else load(model, backend, head=head, device=device)
        if self.potential.model.output().name != "energy" or self.potential.model.spin_scales is not None:
            raise InputError("the dpdata driver needs a model of energies without spin")
        self.parameters = parameters

    def label(self, data: dict[str, Any]) -> dict[str, Any]:
        """The data with energies (f,) eV, forces (f, n, 3) eV/Å and virials (f, 3, 3) eV; forces need derivatives.

        Raises InputError naming an element that the model does not know, and as `Potential.evaluate` does.
        """
        names = np.asarray(data["atom_names"])
        symbols = names[np.asarray(data["atom_types"])]
        open_boundaries = bool(data.get("nopbc", False))
        cells = None if open_boundaries else np.asarray(data["cells"])
        out = self.potential.evaluate(np.asarray(data["coords"]), symbols, cells, forces=True, **self.parameters)
        labelled = {**data, "energies": out["energy"][:, 0], "forces": out["force"]}
        if not open_boundaries:
            labelled["virials"] = out["virial"].reshape(-1, 3, 3)
        return labelled
