"""Run by `mpiexec -n 2 python ghosts_program.py WHAT`: what test_ghosts_mpi.py checks on real ranks.

Prints one line per check on rank 0; a check that fails raises, which ends the job.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from dpmodel.backends.pt.bridge import graph_to_torch, override_table, to_torch, torch_gradient
from dpmodel.backends.pt_expt.ghosts import FaultProvider, GhostExchange, decompose, load_ops, slabs
from dpmodel.backends.pt_expt.ghosts.mpi import MPIProvider, aborting, evaluate
from dpmodel.descriptors.message_passing import MessagePassing
from dpmodel.geometry import TruncationWarning
from dpmodel.input.sections import ModelConfig
from dpmodel.models import builder_of, predict
from dpmodel.models.build import build_model

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
from family import SPINS, small  # a neighbour of this script

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
OVERRIDES = override_table({MessagePassing: GhostExchange})
REPFLOW = {
    "n_dim": 8, "e_dim": 6, "a_dim": 4, "nlayers": 3, "e_rcut": 3.5, "e_rcut_smth": 2.0, "e_sel": 60, "a_rcut": 2.6,
    "a_rcut_smth": 1.5, "a_sel": 25, "axis_neuron": 2, "smooth_edge_update": True,
}  # fmt: skip
FITTING = {"type": "ener", "neuron": [6], "seed": 1}


def say(*what: Any) -> None:
    if RANK == 0:
        print(*what, flush=True)  # noqa: T201 - what the test reads


def total(x: float) -> float:
    return WORLD.allreduce(x)


# --- exchanges of random tables ----------------------------------------------------------------------------


def random_table(owned: list[int], ghosts: list[int], seed: int) -> tuple[list[np.ndarray], list[int], np.ndarray]:
    """(send, receive, (rank, row) of what this rank's ghosts copy): any rank's rows, its own included."""
    rng = np.random.default_rng(seed)
    send, receive, copied = [np.zeros(0, np.int64)] * SIZE, [0] * SIZE, np.zeros((0, 2), np.int64)
    for rank in range(SIZE):
        homes = np.sort(rng.choice([r for r in range(SIZE) if owned[r]], ghosts[rank]))
        rows = np.array([rng.integers(owned[home]) for home in homes], np.int64)
        send[rank] = rows[homes == RANK]
        if rank == RANK:
            receive = np.bincount(homes, minlength=SIZE).tolist()
            copied = np.stack([homes, rows], axis=1)
    return send, receive, copied


def exchange() -> None:
    """T1 and T2: the reverse exchange is the adjoint of the forward one, which copies bit by bit."""
    load_ops()
    ops = torch.ops.dpmodel
    shapes = {
        "even": ([9] * SIZE, [13] * SIZE),
        "odd": ([3 + 5 * r for r in range(SIZE)], [max(17 - 9 * r, 0) for r in range(SIZE)]),
        "one rank has ghosts only": ([7] + [0] * (SIZE - 1), [4] * SIZE),
        "one rank has nothing": ([7] + [0] * (SIZE - 1), [4] + [0] * (SIZE - 1)),
        "no ghosts": ([2] * SIZE, [0] * SIZE),
    }
    for (name, (owned, ghosts)), width, dtype in itertools.product(
        shapes.items(), (1, 7, 64, 128), (torch.float32, torch.float64)
    ):
        send, receive, copied = random_table(owned, ghosts, seed=width)
        provider = MPIProvider(WORLD, send, receive)
        handle = torch.as_tensor(provider.handle)
        n, m = owned[RANK], owned[RANK] + ghosts[RANK]
        random = torch.Generator().manual_seed(RANK)
        x, g = (torch.randn((k, width), dtype=dtype, generator=random) for k in (n, m))
        out = ops.ghost_forward(x, handle, m)
        everything = WORLD.allgather(x.numpy())
        for row, (home, original) in zip(out[n:].numpy(), copied, strict=True):
            assert row.tobytes() == everything[home][original].tobytes(), name
        assert torch.equal(out[:n], x)
        back = ops.ghost_reverse(g, handle, n)
        left, right = total(float((g.double() * out.double()).sum())), total(float((back.double() * x.double()).sum()))
        scale = total(float((g.double() * out.double()).abs().sum()))
        bound = (1e-6 if dtype == torch.float32 else 1e-14) * scale
        assert abs(left - right) <= bound, (name, width, dtype, left, right)
        assert (provider.n_forward, provider.n_reverse) == (1, 1)
        say("exchange", name, width, str(dtype), "holds")


# --- models ----------------------------------------------------------------------------------------------------


def model_of(**patch: Any) -> Any:
    section = {
        "type_map": ["O", "H"],
        "descriptor": {"type": "dpa3", "precision": "float64", "seed": 1, "repflow": {**REPFLOW, **patch.pop("repflow", {})}},
        "fitting_net": {**FITTING, **patch.pop("fitting_net", {})},
        **patch,
    }  # fmt: skip
    # Larger weights than fresh ones: forces that are worth comparing.
    return build_model(ModelConfig.from_dict(section), seed=1).map_arrays(lambda x: 2 * x)


def system(atoms: int, *, periodic: bool = True, virtual: int = 0, seed: int = 0) -> Any:
    """Coordinates, types and a triclinic cell that is smaller than two cutoffs."""
    rng = np.random.default_rng(seed)
    cell = np.array([[5.4, 0.0, 0.0], [1.9, 5.1, 0.0], [-1.2, 0.8, 4.9]])
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[rng.permutation(27)[:atoms]] / 3
    coord = (grid + rng.uniform(-0.05, 0.05, (atoms, 3))) @ cell
    atype = rng.integers(0, 2, atoms)
    atype[:virtual] = -1
    return coord, atype, cell if periodic else None


ASSIGNMENTS = {
    "slabs": lambda coord, cell: slabs(coord, cell, SIZE),
    "slabs along z": lambda coord, cell: slabs(coord, cell, SIZE, axis=2),
    "any": lambda coord, cell: np.random.default_rng(4).integers(0, SIZE, len(coord)),
    "one rank has everything": lambda coord, cell: np.zeros(len(coord), np.int64),
    "one rank has one atom": lambda coord, cell: (np.arange(len(coord)) == 0).astype(np.int64),
}

CASES: dict[str, Any] = {
    "periodic": ({}, {}),
    "open": ({}, {"periodic": False}),
    "virtual atoms": ({}, {"virtual": 4}),
    "truncated": ({"repflow": {"e_sel": 7, "a_sel": 3, "smooth_edge_update": False}}, {}),
    "dynamic": ({"repflow": {"use_dynamic_sel": True, "sequential_update": True, "nlayers": 2}}, {}),
    "parameters": ({"fitting_net": {"numb_aparam": 2, "numb_fparam": 1}, "pair_exclude_types": [[0, 1]]}, {}),
}


def compare(name: str, ours: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    bounds = {"energy": 1e-10, "force": 1e-10, "atom_energy": 1e-10, "virial": 1e-9, "atom_virial": 1e-9, "mask": 0}
    if "force_mag" in ours:
        bounds |= {"force_mag": 1e-10, "mask_mag": 0}
    assert ours.keys() == expected.keys() == bounds.keys()
    for key, bound in bounds.items():
        value = expected[key].detach().numpy()
        assert ours[key].shape == value.shape, (name, key, ours[key].shape)
        largest = np.abs(ours[key] - value).max(initial=0.0) / max(1.0, np.abs(value).max(initial=0.0))
        assert largest <= bound, f"{name}: {key} differs by {largest:.1e}"
    assert np.abs(ours["force"]).max() > 0.01, np.abs(ours["force"]).max()  # of something
    say("model", name, "holds")


def model() -> None:
    """N ranks equal one process."""
    for case, (patch, options) in CASES.items():
        model = model_of(**patch)
        coord, atype, cell = system(18, **options)
        rng = np.random.default_rng(7)
        extra: dict[str, Any] = {}
        if model.dim_aparam:
            extra = {"aparam": rng.normal(size=(1, 18, 2)), "fparam": rng.normal(size=(1, 1))}
        builder = dataclasses.replace(builder_of(model), group_by_type=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            graph = builder.build(
                coord[None], atype[None], None if cell is None else cell[None], pbc=cell is not None, **extra
            )
        module = to_torch(model, overrides=OVERRIDES)
        expected = predict(module, graph_to_torch(graph), torch_gradient, atomic_virial=True)
        layers = len(model.descriptor.layers)
        for name, assign in ASSIGNMENTS.items():
            part = decompose(graph, coord, cell, assign(coord, cell), SIZE)[RANK]
            provider = MPIProvider.of(WORLD, part)
            outputs = evaluate(module, part, WORLD, provider=provider, atomic_virial=True)
            compare(f"{case}, {name}", outputs, expected)
            assert WORLD.allgather((provider.n_forward, provider.n_reverse)) == [(layers, layers - 1)] * SIZE


def family() -> None:
    """The same of other models: descriptors side by side, virtual atoms, models of models."""
    for kind in ("dpa2", "hybrid", "zbl", "spin_se_a", "spin_dpa3", "spin_dpa2"):
        model = small(kind)
        for case, options in {"periodic": {"virtual": 1}, "open": {"periodic": False}}.items():
            coord, atype, cell = system(18, **options)
            extra = {"spin": np.random.default_rng(3).normal(size=(1, 18, 3))} if kind in SPINS else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncationWarning)
                graph = builder_of(model).build(coord[None], atype[None], None if cell is None else cell[None], **extra)
            module = to_torch(model, overrides=OVERRIDES)
            expected = predict(module, graph_to_torch(graph), torch_gradient, atomic_virial=True)
            for name in ("slabs", "any", "one rank has everything"):
                part = decompose(graph, coord, cell, ASSIGNMENTS[name](coord, cell), SIZE)[RANK]
                compare(f"{kind}, {case}, {name}", evaluate(module, part, WORLD, atomic_virial=True), expected)


# --- faults ----------------------------------------------------------------------------------------------------


def mark() -> None:
    """The test measures from here to the end of the job."""
    WORLD.Barrier()
    Path(sys.argv[2]).touch()


def fault(kind: Any, at: int) -> None:
    """One exchange fails on the last rank; the others go on to the next collective call."""
    model = model_of()
    coord, atype, cell = system(18)
    graph = builder_of(model).build(coord[None], atype[None], cell[None])
    part = decompose(graph, coord, cell, slabs(coord, cell, SIZE), SIZE)[RANK]
    provider: Any = MPIProvider.of(WORLD, part)
    if RANK == SIZE - 1:
        provider = FaultProvider(provider, fail_at=at, kind=kind)
    module = to_torch(model, overrides=OVERRIDES)
    mark()
    evaluate(module, part, WORLD, provider=provider)
    say("came to the end")


def different(change: str = "") -> None:
    """The last rank has a model with other numbers, or with another option."""
    model = model_of()
    coord, atype, cell = system(18)
    graph = builder_of(model).build(coord[None], atype[None], cell[None])
    part = decompose(graph, coord, cell, slabs(coord, cell, SIZE), SIZE)[RANK]
    if RANK == SIZE - 1:
        model = model.replace(**{"atom_exclude_types": (0,)} if change else {"out_bias": model.out_bias + 1e-12})
    mark()
    evaluate(to_torch(model, overrides=OVERRIDES), part, WORLD)
    say("came to the end")


def raising() -> None:
    """A rank that raises while another waits for it."""
    mark()
    with aborting():
        if RANK == SIZE - 1:
            raise ValueError("the input of the last rank is wrong")
        WORLD.Barrier()
    say("came to the end")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] in ("forward", "reverse"):
        fault(sys.argv[1], int(sys.argv[3]))
    else:
        with aborting():
            {
                "exchange": exchange, "model": model, "family": family, "raising": raising, "different": different,
                "otherwise": lambda: different("option"),
            }[sys.argv[1]]()  # fmt: skip
            sys.exit(0)  # no failure
