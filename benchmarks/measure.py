"""One model: its weights in every form that is measured, then all cases, round by round."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from cases import PEER, SEVERAL_RANKS, WAYS, Case, Way
from dynamics import SETTINGS, STYLES
from report import Row
from sides import Side, WorkerError
from workload import read_input, timed_input, write_data, write_frames

__all__ = ["Benchmark"]

MESSAGE_PASSING = {"dpa2", "dpa3"}
"""Descriptors that exchange between ranks."""
WARMUP = 3
"""Evaluations before the clock counts: TorchScript optimises during the second and third."""
LIMIT = 30.0
"""Seconds of evaluation in one process, after which one call behind the warm-up is enough."""
SLOW = 1.5
"""Ways of the peer that took so many times as long as its best are measured in the first round alone."""
START = time.monotonic()
ERROR_LINE = re.compile(r"(ERROR|[A-Za-z_][\w.]*(Error|Exception|Node))\b.*:")
"""The line of what a failing program wrote that says what happened."""
ENERGY_PER_ATOM = 1e-5
"""eV: how far energies may differ where all run the same weights in float32."""
FORCE = 1e-4
"""The same for the norm of the difference of all forces of a frame, relative to their norm."""


class Benchmark:
    """Prepares weights, files and frames of a model, then measures round by round."""

    def __init__(self, name: str, args: argparse.Namespace, ours: Side, peer: Side | None) -> None:
        self.name, self.args = name, args
        self.sides = {"ours": ours} | ({} if peer is None else {"peer": peer})
        self.content = read_input(name)
        self.steps: int = args.steps or self.content["training"]["numb_steps"]
        self.scratch = ours.scratch / name
        self.scratch.mkdir()
        self.frames: dict[int, Path] = {}
        self.atoms: dict[int, int] = {}
        self.models: dict[tuple[str, str, str], Path] = {}
        """The files to evaluate, by side, setting and suffix (see `_file`); the weights are the same."""
        self.rehearsed: dict[Case, dict[str, Any]] = {}
        self.outputs: dict[Case, dict[str, np.ndarray]] = {}
        """Energies, forces and virials of the rehearsals."""
        self.dynamics: dict[int, tuple[Case, list[float]]] = {}
        """By supercell: the first run of LAMMPS, and its energies after the first and the last step."""
        self.rows = [Row(case, self._place(case.supercell)) for case in self._cases()]

    def _place(self, supercell: int) -> int:
        """Writes the frames of a supercell, and their first one for LAMMPS; returns the number of atoms."""
        if supercell not in self.frames:
            path = self.scratch / f"frames-{supercell}.npz"
            count = WARMUP + self.args.repeats
            self.atoms[supercell] = write_frames(path, self.content, supercell=supercell, count=count)
            write_data(path.with_suffix(".data"), path, len(self.content["model"]["type_map"]))
            self.frames[supercell] = path
        return self.atoms[supercell]

    def _cases(self) -> Iterator[Case]:
        """In the order of measurement: within a quantity and a size the two sides take turns."""
        for quantity in self.args.quantities:
            able = self._turns(quantity)
            if quantity == "evaluation":
                for size in self.args.supercells:
                    yield from (Case(self.name, quantity, name, size) for name in able)
            elif quantity == "lammps":
                for size in self.args.lammps_supercells:
                    for ranks in self.args.ranks:
                        for setting in SETTINGS:
                            yield from (Case(self.name, quantity, name, size, ranks, setting) for name in able)
            else:
                yield from (Case(self.name, quantity, name) for name in able)
            if quantity == "export":
                two = [name for name in able if self._two_exports(WAYS[name])]
                yield from (Case(self.name, quantity, name, setting=SEVERAL_RANKS) for name in two)

    def _turns(self, quantity: str) -> list[str]:
        """The ways that compute a quantity, one of ours and one of the peer in turn; none where none of ours does."""
        able = [name for name in self.args.names if quantity in WAYS[name].does and WAYS[name].side in self.sides]
        sides = [[name for name in able if WAYS[name].side == side] for side in self.sides]
        if not sides[0]:
            return []
        return [name for turn in zip_longest(*sides) for name in turn if name is not None]

    # --- before the first round -------------------------------------------------------------------------

    def prepare(self) -> None:
        """Weights and files, then one short process of every kind: it warms caches and lists its modules."""
        self._weights()
        self._libraries()
        self._artefacts()
        for row in self.rows:
            if row.skipped is None and row.case.quantity in {"training", "evaluation"}:
                if row.case not in self.rehearsed:
                    say(f"{self.name}: rehearsal, {row.case.what()}, {row.atoms} atoms, {row.case.name}")
                    self.rehearsed[row.case] = self._try(row, rehearsal=True)
                row.first = self.rehearsed[row.case].get("first")
        self._check_outputs()

    def _weights(self) -> None:
        """Models of a few steps of training, by the peer where there is one."""
        say(f"{self.name}: a few steps of training for the weights")
        if "peer" not in self.sides:
            case = Case(self.name, "training", "pt")
            self.rehearsed[case] = answer = self._measure(case, rehearsal=True)
            if "skipped" in answer:
                raise WorkerError(f"the weights come from a short training with backend pt: {answer['skipped']}")
            self.models["ours", "", ".dp"] = self.scratch / "training-pt" / "model.ckpt.dp"
            return
        case = Case(self.name, "training", f"{PEER} pt")
        self.rehearsed[case] = self._measure(case, rehearsal=True)
        folder = f"{self.name}/training-{PEER}-pt"
        place = self.scratch / f"training-{PEER}-pt"
        self.sides["peer"].run("freeze", folder, quantity="freeze")
        self.models |= {("peer", "", ".pth"): place / "frozen.pth", ("ours", "", ".dp"): place / "frozen.dp"}
        job = {"model": str(place / "frozen.pth"), "target": str(place / "frozen.dp"), "several_ranks": False}
        self.sides["peer"].run("convert", folder, quantity="export", **job)

    def _libraries(self) -> None:
        """What our side builds once per installation is built before anything is timed."""
        wanted = {quantity for quantity in self.args.quantities if ".pt2" in self.args.names}
        if not wanted & {"evaluation", "export", "lammps"}:
            return
        say(f"{self.name}: building the libraries of the installation")
        answer = self.sides["ours"].run("libraries", ".", quantity="libraries", plugin="lammps" in wanted)
        if "skipped" in answer:
            for row in self.rows:
                if row.case.quantity == "lammps" and row.case.way.side == "ours":
                    row.skipped = answer["skipped"]

    def _artefacts(self) -> None:
        """Exports, each with an empty cache; the files serve the other quantities."""
        for side in self.sides:
            for setting in ("", SEVERAL_RANKS):
                key = (side, setting, ".pt2")
                users = [row for row in self.rows if row.skipped is None and self._file(row.case) == key]
                if not users:
                    continue
                name = users[0].case.name
                say(f"{self.name}: export{setting and ', '}{setting}, {name}")
                target = self.models[key] = self.scratch / f"{side}{setting.replace(' ', '-')}.pt2"
                try:
                    answer = self._export(side, target, setting)
                except WorkerError as problem:
                    answer = {"skipped": self._excuse(side, problem)}
                timed = [row for row in users if row.case.quantity == "export"]
                for row in timed if "skipped" not in answer else users:
                    row.take(answer)

    def _file(self, case: Case) -> tuple[str, str, str]:
        """The key in `models` of what a case needs, or makes."""
        way = case.way
        setting = case.setting if case.quantity == "export" else ""
        if case.quantity == "lammps" and case.ranks > 1 and self._two_exports(way):
            setting = SEVERAL_RANKS
        return way.side, setting, way.file

    def _two_exports(self, way: Way) -> bool:
        """Whether several ranks of LAMMPS need another file than one rank and evaluations do."""
        passing = self.content["model"]["descriptor"]["type"] in MESSAGE_PASSING
        return way.side == "peer" and passing and "lammps" in self.args.quantities and max(self.args.ranks) > 1

    def _export(self, side: str, target: Path, setting: str = "") -> dict[str, Any]:
        model = self.scratch / f"{target.stem}-source.dp"
        shutil.copyfile(self.models["ours", "", ".dp"], model)
        job = {"quantity": "export", "model": str(model), "target": str(target), "several_ranks": bool(setting)}
        return self.sides[side].run((self.name, "export", side), f"{self.name}/export-{target.stem}", cold=True, **job)

    def _check_outputs(self) -> None:
        """Whether all ways computed the same thing. Raises WorkerError where they did not."""
        for size, atoms in self.atoms.items():
            first: tuple[str, dict[str, np.ndarray]] | None = None
            for case, found in self.outputs.items():
                if case.supercell != size:
                    continue
                first = first or (case.name, found)
                for problem in differences(first[1], found, atoms):
                    raise WorkerError(
                        f"{self.name}, {atoms} atoms, {first[0]} and {case.name}: {problem} is rounding: not the same model"
                    )

    def _check_energies(self, case: Case, found: list[float]) -> None:
        """The same for LAMMPS, whose last step comes out right where the forces of all steps do."""
        first, expected = self.dynamics.setdefault(case.supercell, (case, found))
        worst = max(abs(a - b) for a, b in zip(found, expected, strict=True)) / self.atoms[case.supercell]
        if not worst <= ENERGY_PER_ATOM:
            raise ValueError(
                f"{self.name}, LAMMPS, {first.name} ({first.what()}) and {case.name} ({case.what()}): energies of the first "
                f"and last step {expected} and {found}: {worst:.1e} eV per atom apart, at most {ENERGY_PER_ATOM:g} is rounding"
            )

    # --- measuring --------------------------------------------------------------------------------------

    def measure_round(self, number: int) -> None:
        """Every case once; exports in the first round are those of the preparation."""
        for row in self.rows:
            if row.skipped is not None or (number > 1 and self._settled(row)):
                continue
            if row.case.quantity != "export":
                say(f"{self.name}: round {number}, {row.case.what()}, {row.atoms} atoms, {row.case.name}")
                self._try(row)

    def _settled(self, row: Row) -> bool:
        """Whether further rounds change nothing: the peer is slow here, and it is not the counterpart of one of ours."""
        case = row.case
        if case.way.side != "peer" or case == Case(self.name, "training", f"{PEER} pt"):
            return False
        others = [
            r for r in self.rows if r.case.question() == case.question() and r.case.way.side == "peer" and r.seconds
        ]
        return row.seconds[0] > SLOW * min(other.seconds[0] for other in others)

    def _try(self, row: Row, *, rehearsal: bool = False) -> dict[str, Any]:
        """Measure a case into its row. What fails on the side of the peer is left out and told."""
        try:
            answer = self._measure(row.case, rehearsal=rehearsal)
        except WorkerError as problem:
            answer = {"skipped": self._excuse(row.case.way.side, problem)}
        if "skipped" in answer or not rehearsal:
            row.take(answer)
        return answer

    def _excuse(self, side: str, problem: WorkerError) -> str:
        """A failure of the peer as a note. Ours ends the program."""
        if side == "ours":
            raise problem
        say(str(problem))
        lines = [line for line in reversed(str(problem).splitlines()) if line.strip()]
        return next((line for line in lines if ERROR_LINE.match(line)), lines[0])

    def _measure(self, case: Case, *, rehearsal: bool = False) -> dict[str, Any]:
        make = {"training": self._training, "evaluation": self._evaluation, "lammps": self._lammps}
        # The weights stay in the folder of the rehearsal; rounds train somewhere else.
        label = f"{case.what()}-{case.name}".replace(" ", "-").replace(",", "")
        folder = f"{self.name}/{label}" + ("" if rehearsal else "-rounds")
        job = make[case.quantity](case, label, rehearsal)
        answer = self.sides[case.way.side].run(case.kind(), folder, quantity=case.quantity, **job)
        if case.quantity == "lammps" and "skipped" not in answer:
            self._check_energies(case, answer["energy"])
        if rehearsal and "outputs" in job and "skipped" not in answer:
            with np.load(job["outputs"]) as found:
                self.outputs[case] = dict(found)
        return answer

    def _training(self, case: Case, label: str, rehearsal: bool) -> dict[str, Any]:
        steps = self.args.weight_steps if rehearsal else self.steps
        length = {"steps": steps, "excluded": max(1, steps // 4)}
        path = self.scratch / f"{label}{'' if rehearsal else '-rounds'}.json"
        content = timed_input(self.content, **length, compile=case.way.compile)
        path.write_text(json.dumps(content), encoding="utf-8")
        return {"backend": case.way.backend, "input": str(path), **length}

    def _evaluation(self, case: Case, label: str, rehearsal: bool) -> dict[str, Any]:
        return {
            "backend": case.way.backend,
            "compile": case.way.compile,
            "model": str(self.models[self._file(case)]),
            "frames": str(self.frames[case.supercell]),
            "outputs": str(self.scratch / f"{label}-{case.supercell}.npz"),
            # A rehearsal compiles and compares.
            "warmup": 1 if rehearsal else WARMUP,
            "calls": 2 if rehearsal else WARMUP + self.args.repeats,
            "limit": LIMIT,
        }

    def _lammps(self, case: Case, label: str, rehearsal: bool) -> dict[str, Any]:
        return {
            "style": STYLES[case.way.side],
            "model": str(self.models[self._file(case)]),
            "data": str(self.frames[case.supercell].with_suffix(".data")),
            "names": self.content["model"]["type_map"],
            "warmup": max(1, self.args.lammps_steps // 4),
            "steps": self.args.lammps_steps,
            "ranks": case.ranks,
            "setting": case.setting,
            "limit": 0.9 * self.args.timeout,
        }


def differences(first: dict[str, np.ndarray], other: dict[str, np.ndarray], atoms: int) -> Iterator[str]:
    """What differs by more than rounding, in words."""
    energy = float(np.max(np.abs(other["energy"] - first["energy"]))) / atoms
    if not energy <= ENERGY_PER_ATOM:
        yield f"energies are {energy:.1e} eV per atom apart, at most {ENERGY_PER_ATOM:g}"
    if "force" in first and "force" in other:
        count = len(first["force"])
        mine, yours = first["force"].reshape(count, -1), other["force"].reshape(count, -1)
        force = float(np.max(np.linalg.norm(yours - mine, axis=1) / np.linalg.norm(mine, axis=1)))
        if not force <= FORCE:
            yield f"forces are {force:.1e} of themselves apart, at most {FORCE:g}"


def say(message: str) -> None:
    """Progress, for people, with the seconds since the start."""
    print(f"{time.monotonic() - START:5.0f} s  {message}", file=sys.stderr, flush=True)
