"""From DFT data to molecular dynamics in a few minutes: train, test, plot, run.

    python examples/water/demo.py                   # results in ./demo-water
    python examples/water/demo.py --steps 200       # quicker, worse

Everything goes through the command line and `dpmodel.ase`; each command is printed before it runs, so that it can be
repeated by hand in the output folder. Needs the extras `pt`, `ase` and `plot`. The data are 64 molecules of liquid
water with energies and forces from DFT (see data/README.md).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import write
from ase.md.verlet import VelocityVerlet

from dpmodel.ase import Calculator

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
TEST_FRAMES = 40
MD_FRAME, MD_STEPS, TIME_STEP, TEMPERATURE = 60, 100, 0.5, 330.0


def main() -> int:
    """Do it all; the exit status."""
    parser = argparse.ArgumentParser(description="Train on water, test, plot, and run molecular dynamics.")
    parser.add_argument("--steps", type=int, default=1000, help="training steps; default: 1000, about two minutes")
    parser.add_argument("--output", type=Path, default=Path("demo-water"), help="folder of the results")
    parser.add_argument("--backend", default="pt", help="backend of all commands; default: pt")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps: expected a number above 0, got {args.steps}")
    args.output.mkdir(parents=True, exist_ok=True)
    folder = args.output.resolve()

    title(f"1. Train se_e2_a on {count_frames(0, 1, 2)} frames of water for {args.steps} steps")
    (folder / "input.json").write_text(json.dumps(make_input(args.steps), indent=2) + "\n", encoding="utf-8")
    start = time.monotonic()
    run("train", "input.json", "--backend", args.backend, folder=folder)
    seconds = time.monotonic() - start
    run("convert", "model.ckpt.dp", "water.dp", folder=folder)
    run("show", "water.dp", folder=folder)

    title(f"2. Test on {TEST_FRAMES} frames that training has not seen")
    system = str(DATA / "data_3")
    run(
        "test", "-m", "water.dp", "-s", system, "-n", str(TEST_FRAMES), "-d", "test", "--json", "test.json",
        "--backend", args.backend, folder=folder,
    )  # fmt: skip
    errors = json.loads((folder / "test.json").read_text(encoding="utf-8"))["total"]

    title("3. Plot")
    run("plot", "lcurve.out", "-o", "lcurve.png", "--title", f"water, se_e2_a, {args.steps} steps", folder=folder)
    run("plot", "--parity", "test", "-o", "parity.png", "--title", f"{TEST_FRAMES} frames of data_3", folder=folder)

    title(f"4. Molecular dynamics with ASE: {MD_STEPS} steps of {TIME_STEP} fs from {TEMPERATURE:g} K (NVE)")
    drift = run_md(folder, args.backend)

    title("Done")
    print(f"trained     {args.steps} steps in {seconds:.0f} s")
    print(f"force       RMSE {errors['force']['rmse']:.3f} eV/Å on unseen frames (spread of the labels {spread():.3f})")
    print(f"energy      RMSE {1000 * errors['energy_per_atom']['rmse']:.2f} meV/atom")
    print(f"MD          energy stays within {drift:.3f} meV/atom over {MD_STEPS * TIME_STEP:g} fs")
    print(f"\nThe files are in {folder}:")
    for name, what in FILES.items():
        print(f"  {name:<14} {what}")
    print(f"\nUse the model:  dpmodel.load({str(folder / 'water.dp')!r}).evaluate(coord, atype, box)")
    return 0


FILES = {
    "input.json": "what was trained, out.json the same with all defaults",
    "water.dp": "the model (model.ckpt* are checkpoints, which hold the state of training as well)",
    "lcurve.out": "the learning curve; lcurve.png is its picture",
    "test.*.out": "labels and predictions; test.json has the errors, parity.png is the picture",
    "md.extxyz": "the trajectory",
}


def make_input(steps: int) -> dict[str, Any]:
    """input.json of this folder with absolute paths, for a run of that length."""
    data: dict[str, Any] = json.loads((HERE / "input.json").read_text(encoding="utf-8"))
    training = data["training"]
    for section in ("training_data", "validation_data"):
        training[section]["systems"] = [str(HERE / name) for name in training[section]["systems"]]
    training.update(numb_steps=steps, disp_freq=max(1, steps // 25), save_freq=max(1, steps // 2))
    training["validation_data"]["numb_btch"] = 4
    # The rate falls from start_lr to stop_lr in 40 stairs over the run, however long it is.
    data["learning_rate"].update(decay_steps=max(1, steps // 40), stop_lr=1e-5)
    return data


def run(*words: str, folder: Path) -> None:
    """Run one command of dpmodel in a folder; leave with its status if it fails."""
    print(f"$ dpmodel {shlex.join(words)}", flush=True)
    # -P: the current folder is not searched for modules.
    with subprocess.Popen([sys.executable, "-P", "-m", "dpmodel", *words], cwd=folder) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the Ctrl-C as well, and saves a checkpoint
            raise
    print(flush=True)
    if status:
        raise SystemExit(status)


def run_md(folder: Path, backend: str) -> float:
    """NVE dynamics; the largest deviation of the total energy from its mean, meV/atom."""
    atoms = read_frame(MD_FRAME)
    atoms.calc = Calculator(folder / "water.dp", backend=backend)
    set_velocities(atoms)
    frames: list[Atoms] = []
    energies: list[float] = []
    print(f"{'time, fs':>9} {'potential, eV':>15} {'kinetic, eV':>12} {'T, K':>7} {'total, eV':>15}")

    def record() -> None:
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        energies.append(potential + kinetic)
        if dynamics.nsteps % 10 == 0:
            frames.append(atoms.copy())
        if dynamics.nsteps % 20 == 0:
            moment = dynamics.nsteps * TIME_STEP
            print(
                f"{moment:9.1f} {potential:15.4f} {kinetic:12.4f} {atoms.get_temperature():7.1f} {energies[-1]:15.4f}"
            )

    dynamics = VelocityVerlet(atoms, timestep=TIME_STEP * units.fs)
    dynamics.attach(record)
    dynamics.run(MD_STEPS)
    write(folder / "md.extxyz", frames)
    total = np.array(energies)
    return float(np.max(np.abs(total - total.mean()))) * 1000 / len(atoms)


def set_velocities(atoms: Atoms) -> None:
    """Random ones of the Maxwell-Boltzmann distribution, at rest as a whole, scaled to the temperature."""
    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(masses * units.kB * TEMPERATURE) * np.random.default_rng(1).normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(TEMPERATURE / atoms.get_temperature()))


def read_frame(frame: int) -> Atoms:
    """One frame of data_3."""
    system = DATA / "data_3"
    names = (system / "type_map.raw").read_text(encoding="utf-8").split()
    kinds = [int(word) for word in (system / "type.raw").read_text(encoding="utf-8").split()]
    coord = np.load(system / "set.000" / "coord.npy")[frame].reshape(-1, 3)
    cell = np.load(system / "set.000" / "box.npy")[frame].reshape(3, 3)
    return Atoms([names[kind] for kind in kinds], positions=coord, cell=cell, pbc=True)


def count_frames(*systems: int) -> int:
    """Frames of these systems together."""
    files = [path for k in systems for path in (DATA / f"data_{k}").glob("set.*/energy.npy")]
    return sum(len(np.load(path)) for path in files)


def spread() -> float:
    """Standard deviation of the forces of data_3, eV/Å: the error of a model that predicts nothing."""
    return float(np.std(np.load(DATA / "data_3" / "set.000" / "force.npy")[:TEST_FRAMES]))


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'=' * len(text)}\n", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
