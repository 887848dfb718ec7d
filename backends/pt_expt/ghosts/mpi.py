"""Exchange and evaluation on several ranks in Python (mpi4py), without LAMMPS.

    # mpiexec -n 2 python script.py
    from mpi4py import MPI
    from dpmodel.backends.pt_expt.ghosts import mpi
    parts = decompose(graph, coord, cell, slabs(coord, cell, MPI.COMM_WORLD.size), MPI.COMM_WORLD.size)
    outputs = mpi.evaluate(module, parts[MPI.COMM_WORLD.rank], MPI.COMM_WORLD)

Every rank evaluates eagerly. It does not compile by itself: ranks whose compilers ordered exchanges differently would
wait for each other forever.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from dpmodel.graph import Comm
from dpmodel.models import predict

from ...pt.bridge import graph_to_torch, structure, torch_gradient
from .decompose import Part
from .folding import NODE_KEYS, fold
from .providers import Provider

__all__ = ["MPIProvider", "aborting", "evaluate"]


class MPIProvider(Provider):
    """Exchange between the ranks of a communicator, in one `Alltoallv` each.

    Ghosts are sorted by the rank that owns what they copy. A rank may send to itself: periodic images.
    """

    def __init__(
        self, comm: MPI.Comm, send: Sequence[np.ndarray], receive: Sequence[int], *, max_bytes_per_row: int = 0
    ) -> None:
        """send: per rank, which owned rows it is sent, in the order of its ghosts. receive: per rank, how many ghosts
        copy rows of it.
        """
        super().__init__(max_bytes_per_row=max_bytes_per_row)
        if not len(send) == len(receive) == comm.size:
            raise ValueError(f"one entry per rank ({comm.size}) is needed, got {len(send)} and {len(receive)}")
        self.comm = comm
        self.rows = np.concatenate([np.asarray(rows, np.int64) for rows in send])
        self.send = np.array([len(rows) for rows in send])
        self.receive = np.array([int(count) for count in receive])

    @classmethod
    def of(cls, comm: MPI.Comm, part: Part) -> MPIProvider:
        """The provider of a part. Collective: every rank says which rows it needs."""
        counts = np.bincount(part.ghost_rank, minlength=comm.size)
        wanted = np.split(part.ghost_row, np.cumsum(counts)[:-1])
        return cls(comm, comm.alltoall(wanted), counts.tolist())

    def forward(self, rows: np.ndarray, n_owned: int) -> None:
        """See `Provider.forward`."""
        self._check(rows, n_owned)
        self._move(rows[self.rows], self.send, rows[n_owned:], self.receive)

    def reverse(self, rows: np.ndarray, n_owned: int) -> None:
        """See `Provider.reverse`. Shares are added in the order of ranks."""
        self._check(rows, n_owned)
        shares = np.empty((len(self.rows), rows.shape[1]), rows.dtype)
        self._move(rows[n_owned:], self.receive, shares, self.send)
        np.add.at(rows, self.rows, shares)

    def _move(self, source: np.ndarray, give: np.ndarray, target: np.ndarray, take: np.ndarray) -> None:
        """All rows to all ranks: `give[r]` rows of source to rank r, `take[r]` of target from it."""
        width = source.shape[1]
        kind = MPI.FLOAT if source.dtype == np.float32 else MPI.DOUBLE
        self.comm.Alltoallv([source, give * width, kind], [target, take * width, kind])

    def _check(self, rows: np.ndarray, n_owned: int) -> None:
        ghosts = int(self.receive.sum())
        if len(rows) - n_owned != ghosts:
            raise ValueError(f"this rank receives {ghosts} ghosts, the exchange is of {len(rows) - n_owned}")
        if len(self.rows) and not (self.rows.min() >= 0 and self.rows.max() < n_owned):
            raise ValueError(f"rows to send must be in [0, {n_owned}), got up to {self.rows.max()}")


@contextlib.contextmanager
def aborting() -> Iterator[None]:
    """End every rank of the job when this one raises: the others would wait for it without end."""
    try:
        yield
    except BaseException as problem:
        if isinstance(problem, SystemExit) and problem.code in (None, 0):
            raise
        traceback.print_exc()
        world = MPI.COMM_WORLD
        sys.stderr.write(f"rank {world.rank} of {world.size} ends the job: {type(problem).__name__}: {problem}\n")
        sys.stderr.flush()
        time.sleep(0.3)  # an abort takes what mpiexec has not yet read with it
        world.Abort(1)
        raise  # where another rank's abort is under way, this one returns


def evaluate(
    module: Any,
    part: Part,
    comm: MPI.Comm,
    *,
    provider: Provider | None = None,
    atomic_virial: bool = False,
    device: str | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of a model for all ranks' atoms, equal on every rank. Collective.

    module: of `to_torch` with the overrides of this backend, or anything that takes a `Graph` of tensors. provider: of
    this part, for several evaluations of it; else a new one is made. device: of the module. Returns energy (1, 1),
    virial (1, 9), force (s, 3), atom_energy (s, 1), mask (s,) and on request atom_virial (s, 9) of all s atoms, in the
    order of `coord`; of models with spin force_mag (s, 3) and mask_mag (s, 1) too. A rank that raises ends the whole job
    (`aborting`); so do modules that differ between ranks, which are compared where no provider is given.
    """
    with aborting():
        if provider is None:
            _check_same(module, comm)
            provider = MPIProvider.of(comm, part)
        graph = graph_to_torch(part.graph.replace(comm=Comm(handle=provider.handle)), device)
        outputs = predict(module, graph, torch_gradient, atomic_virial=atomic_virial)
        own = {key: value.detach().cpu().numpy() for key, value in outputs.items()}
        n, whole = len(part.graph.frame), {}
        home = functools.partial(provider.fold, n_owned=n)
        for key, value in own.items():
            if key in ("energy", "virial"):
                share = value
            else:
                folded = fold(value, part.graph, home) if key in NODE_KEYS else value
                share = np.zeros((part.total, *value.shape[1:]), value.dtype)
                share[part.atoms] = folded
            whole[key] = np.empty_like(share)
            comm.Allreduce(np.ascontiguousarray(share), whole[key])
        return whole


def _check_same(module: Any, comm: MPI.Comm) -> None:
    """Raise ValueError on every rank where modules differ: their exchanges would not meet, or numbers be of no model."""
    digest = hashlib.sha256()
    for each in structure(module) if isinstance(module, torch.nn.Module) else ():
        digest.update(repr(each).encode())
    state = module.state_dict() if isinstance(module, torch.nn.Module) else {}
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    everyone = comm.allgather(digest.hexdigest())
    other = [rank for rank, found in enumerate(everyone) if found != everyone[0]]
    if other:
        raise ValueError(f"the models of ranks {other} are not that of rank 0; give every rank the same")
