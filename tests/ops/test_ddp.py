"""Kernels under DistributedDataParallel: two processes have the gradients of one on the joined batch."""

import sys

import torch
from torch import nn

from backends import by_compiled_backend
from groupnorm import GroupNorm
from nn.test_sync_batch_norm import run_twice

PROCESS = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
model, x, upstream = torch.load(f"{folder}/work.pt", weights_only=False)
model = DistributedDataParallel(model)
for _ in range(2):
    model.zero_grad()
    model(x.chunk(2)[rank]).backward(upstream.chunk(2)[rank])
torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
del model  # it holds the process group, whose threads would outlive the interpreter
dist.barrier()
dist.destroy_process_group()
"""


@by_compiled_backend
def test_two_processes_have_the_gradients_of_one(tmp_path, backend):
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), GroupNorm(4, 12, activation="silu", backend=backend), nn.Conv2d(12, 2, 1)
    )
    x = torch.randn(4, 3, 12, 12)
    upstream = torch.randn_like(model(x))
    torch.save((model, x, upstream), tmp_path / "work.pt")
    run_twice([sys.executable, "-c", PROCESS], str(tmp_path))
    model(x).backward(upstream)
    for rank in (0, 1):
        for got, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), model.parameters(), strict=True):
            torch.testing.assert_close(2 * got, parameter.grad, rtol=1e-4, atol=1e-4)  # DDP averages
