"""Two processes of gloo: steps on sharded parameters are those on whole ones, and the Kalman filter sees all batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import datetime, sys
import numpy as np, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from dpmodel.backends.pt.optimizers import LKF, SLOTS, Observation, kalman_step, make_optimizer
from dpmodel.input.optimizers import OPTIMIZERS

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method="file://" + store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
mesh = init_device_mesh("cpu", (2,))
SHAPES = {"a.w": (6, 6), "a.b": (6,), "b.w": (5, 3), "b.idt": (3,), "c.w": (1, 4), "d.w": (3, 4, 5), "e.w": (1, 4, 5),
          "f.w": (6, 6), "g.adamw_w": (3, 3), "h.b": (1,)}
kinds = {kind.key: kind for kind in OPTIMIZERS}
CASES = [("Adam", {}), ("AdamW", {}), ("AdaMuon", {}), ("AdaMuon", {"lr_adjust": 0.0}), ("HybridMuon", {}),
         ("HybridMuon", {"magma_muon": False, "lr_adjust": 2.0}), ("HybridMuon", {"enable_gram": False}),
         ("HybridMuon", {"muon_mode": "flat"}), ("HybridMuon", {"muon_mode": "2d"})]


def numbers(seed, shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cut(tensor):
    return distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)


for key, options in CASES:
    whole = [(name, torch.nn.Parameter(numbers(k, s))) for k, (name, s) in enumerate(SHAPES.items())]
    parts = [(name, torch.nn.Parameter(cut(numbers(k, s)))) for k, (name, s) in enumerate(SHAPES.items())]
    optimizers = [make_optimizer(kinds[key](**options), each, start_lr=0.01, num_steps=5) for each in (whole, parts)]
    for step in range(4):
        for k, (name, shape) in enumerate(SHAPES.items()):
            slope = None if step == 1 and name in ("b.w", "a.b") else numbers(100 * step + k, shape)
            whole[k][1].grad = slope
            parts[k][1].grad = None if slope is None else cut(slope)
        for optimizer in optimizers:
            optimizer.step()
    largest = 0.0
    for (name, p), (_, q) in zip(whole, parts):
        assert isinstance(q.data, DTensor) and q.placements == (Shard(0),), name
        difference = (p - q.full_tensor()).detach().abs().max().item()
        assert difference < 1e-12, (key, options, name, difference)
        own, other = optimizers[0].state[p], optimizers[1].state[q]
        assert own.keys() == other.keys() and own.keys() <= set(SLOTS[key]), name
        for slot, value in own.items():
            found = other[slot]
            if value.shape == ():
                assert not isinstance(found, DTensor), (key, name, slot)
            else:
                assert found.placements == (Shard(0),) and found.shape == p.shape, (key, name, slot)
                found = found.full_tensor()
            assert found.dtype == value.dtype and torch.allclose(found, value, rtol=1e-6, atol=1e-12), (key, name, slot)
        largest = max(largest, difference)
    if rank == 0:
        print(key, options, largest)


def filtered(ranks, total):
    # Parameters after three steps of the Kalman filter on the batches of these ranks.
    named = [("w", torch.nn.Parameter(numbers(1, (4, 3)))), ("b", torch.nn.Parameter(numbers(2, (3,))))]
    optimizer = LKF(named, blocksize=8)

    def observation(seed, frames):
        (_, w), (_, b) = named
        x = numbers(seed, (5 * frames, 4))
        frame = np.repeat(np.arange(frames), 5)

        def predict(forces):
            each = torch.tanh(x @ w + b)
            energy = each.sum(1).reshape(frames, 5).sum(1, keepdim=True)
            return {"energy": energy, "force": each}

        return Observation(
            predict=predict, energy=numbers(seed + 1, (frames, 1)), force=numbers(seed + 2, (5 * frames, 3)),
            atype=np.zeros(5 * frames, int), frame=frame, natoms=np.full(frames, 5),
        )

    for step in range(3):
        kalman_step(optimizer, [observation(10 * step + 100 * r, 1 + r) for r in ranks], total=total)
    return torch.cat([p.detach().reshape(-1) for _, p in named])


def total(x):
    dist.all_reduce(x)
    return x


difference = (filtered([rank], total) - filtered([0, 1], None)).abs().max().item()
assert difference < 1e-13, difference
dist.barrier()
dist.destroy_process_group()
print("done")
"""


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), str(rank), str(tmp_path / "store")], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, output in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, output
        assert output.rstrip().endswith("done")
