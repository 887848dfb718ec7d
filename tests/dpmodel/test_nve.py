"""Energy of water at constant volume, without a thermostat: forces are the derivatives of the energy, step after step.

The model is small, smooth and has room for all neighbours; tests/data/nve/README.md says how it was trained. ASE's
velocity Verlet, 0.5 fs, velocities drawn at 300 K. The drift is the slope of a straight line fitted to the energies of all
steps; at night it is measured in both precisions, printed (`pytest -m nightly -rP`) and written into the report of the run
(`--junitxml`).

What velocity Verlet conserves is not the total energy E but, to the fourth order of the time step h,

    E + h^2 (v . V'' v / 12 - F . F / (24 m))        (Hairer, Lubich, Wanner, Geometric Numerical Integration, ch. IX)

E itself falls by 8e-5 eV per atom while the first picosecond warms the water from 300 K to 450 K, whatever the forces are
derivatives of: 4 times less with half the step. So drifts are of the conserved energy; that of E is recorded beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.input import load_model
from dpmodel.models import LinearModel, Model
from dpmodel.models.build import build_model
from dpmodel.models.tables import read_pair_table

pytest.importorskip("torch")
pytest.importorskip("ase")
from ase import Atoms, units  # after importorskip
from ase.md.verlet import VelocityVerlet

from dpmodel.ase import Calculator

FOLDER = Path(__file__).parents[1] / "data" / "nve"
FRAME, TIME_STEP, TEMPERATURE = 60, 0.5, 300.0


def water(folder: Path) -> Atoms:
    """64 molecules at the start."""
    coord, box = (np.load(folder / "data_3" / "set.000" / f"{name}.npy")[FRAME] for name in ("coord", "box"))
    kind = np.loadtxt(folder / "data_3" / "type.raw", int)
    names = (folder / "data_3" / "type_map.raw").read_text().split()
    atoms = Atoms([names[k] for k in kind], coord.reshape(-1, 3), cell=box.reshape(3, 3), pbc=True)
    mass = atoms.get_masses()[:, None]
    speed = np.random.default_rng(1).standard_normal((len(atoms), 3)) * np.sqrt(units.kB * TEMPERATURE / mass)
    still = speed - np.sum(mass * speed, axis=0) / np.sum(mass)
    atoms.set_velocities(still * np.sqrt(np.sum(mass * speed**2) / np.sum(mass * still**2)))
    return atoms


def energies(atoms: Atoms, calculator: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(steps - 1,) each: total energy per atom, and the one that velocity Verlet conserves, eV; the ends are left out."""
    atoms.calc = calculator
    step, mass = TIME_STEP * units.fs, atoms.get_masses()[:, None]
    run, total, small, force, speed = VelocityVerlet(atoms, step), [], [], [], []

    def record() -> None:
        force.append(atoms.get_forces())
        speed.append(atoms.get_velocities())
        total.append(atoms.get_total_energy())
        small.append(-np.sum(force[-1] ** 2 / mass) / 24.0)
        if len(force) > 2:  # V'' v is minus the change of forces in time
            small[-2] -= np.sum(speed[-2] * (force[-1] - force[-3])) / (24.0 * step)
            force[-3] = speed[-3] = None

    run.attach(record)
    run.run(steps)
    assert len(total) == steps + 1
    plain = np.asarray(total[1:-1]) / len(atoms)
    return plain, plain + step**2 * np.asarray(small[1:-1]) / len(atoms)


def drift(found: np.ndarray) -> float:
    """Slope of a linear fit, eV per atom per ps."""
    time = np.arange(len(found)) * TIME_STEP / 1000.0
    return float(np.polyfit(time, found - found[0], 1)[0])


def single(model: Model) -> Model:
    """The model as a run with `precision: float32` in both sections would have trained it."""
    section = json.loads((FOLDER / "input.json").read_text(encoding="utf-8"))["model"]
    for part in ("descriptor", "fitting_net"):
        section[part]["precision"] = "float32"
    built, state = build_model(load_model(section)), model.state()
    return built.with_state({key: state[key].astype(value.dtype) for key, value in built.state().items()})


def make_potential(precision: str) -> dpmodel.Potential:
    """The trained model, and a table that keeps atoms apart."""
    trained = dpmodel.load(FOLDER / "model.dp", "numpy").model
    types = trained.type_map
    table = read_pair_table(FOLDER / "repulsion.txt", types, rcut=2.5, sel=40, name="repulsion")
    zero, one = np.zeros((len(types), 1)), np.ones((len(types), 1))
    part = single(trained) if precision == "float32" else trained
    assert {value.dtype.name for name, value in part.state().items() if name.endswith(".w")} == {precision}
    both = LinearModel(parts=(part, table), weights="sum", type_map=types, out_bias=zero, out_std=one)
    return dpmodel.Potential.from_model(both, "pt", device="cpu")


@pytest.fixture(scope="module")
def potential() -> dpmodel.Potential:
    return make_potential("float64")


class Careless(Calculator):
    """Forces that are not quite the derivatives of the energy."""

    def calculate(self, *args: Any, **options: Any) -> None:
        super().calculate(*args, **options)
        self.results["forces"] = self.results["forces"] * 1.02


SPREAD = 5e-5
"""Standard deviation of the energy within 100 fs, eV per atom: 3e-5 is velocity Verlet's own at this step."""
CONSERVED = 2e-6
"""The same of the energy that velocity Verlet conserves to the fourth order."""


def test_energy_stays(potential: dpmodel.Potential, water_data: Path) -> None:
    assert potential.model.parts[0].descriptor.is_smooth()
    plain, conserved = energies(water(water_data), Calculator(potential), 200)
    assert plain.std() <= SPREAD
    assert conserved.std() <= CONSERVED


def test_other_forces_would_be_seen(potential: dpmodel.Potential, water_data: Path) -> None:
    plain, conserved = energies(water(water_data), Careless(potential), 200)
    assert plain.std() > SPREAD
    assert conserved.std() > CONSERVED


BOUNDS = {"float64": 1e-6, "float32": 1e-5}
"""Of the drift, eV per atom per ps. In float32 forces are derivatives up to rounding, 1e-7 of their terms."""


@pytest.mark.nightly
@pytest.mark.parametrize("precision", BOUNDS)
def test_drift(precision: str, water_data: Path, record_property: Callable[[str, object], None]) -> None:
    """5 ps."""
    atoms = water(water_data)
    plain, conserved = energies(atoms, Calculator(make_potential(precision)), 10_000)
    for name, found in (("energy", plain), ("conserved energy", conserved)):
        text = f"drift {drift(found):.2e} eV/atom/ps, standard deviation {found.std():.2e} eV/atom"
        record_property(f"NVE, {precision}, {name}", text)
        print(f"NVE, {precision}, {name}: {text}")  # noqa: T201 - docs/results.md has these figures, from -rP
    assert 150.0 < atoms.get_temperature() < 1000.0  # still a liquid, and moving
    assert abs(drift(conserved)) <= BOUNDS[precision]
