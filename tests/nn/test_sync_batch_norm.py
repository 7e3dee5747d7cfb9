"""Synchronised batch norm over two processes against batch norm on the joined batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from agreement import assert_agrees, make_case, run
from groupnorm.errors import ShapeError, SingleElementError
from groupnorm.nn import SyncBatchNorm
from groupnorm.sets import batch_set
from tolerances import rounding

PROCESS = """
import json, sys, torch, torch.distributed as dist
from groupnorm.errors import SingleElementError
from groupnorm.nn import SyncBatchNorm

rank, folder, sizes, momentum = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
layer = SyncBatchNorm(6, momentum=momentum).double()
layer.load_state_dict(torch.load(f"{folder}/state.pt"))
batches = torch.load(f"{folder}/batches.pt")
outcome = {"y": [], "dx": []}
for x, upstream in batches:
    x, upstream = (t.split(sizes)[rank].clone().requires_grad_() for t in (x, upstream))
    try:
        y = layer(x)
    except SingleElementError as error:
        outcome["error"] = str(error)
        break
    y.backward(upstream.detach())
    outcome["y"].append(y.detach())
    outcome["dx"].append(x.grad)
outcome |= {"dweight": layer.weight.grad, "dbias": layer.bias.grad, "state": layer.state_dict()}
torch.save(outcome, f"{folder}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def two_processes(folder, layer, batches, sizes):
    """What each of two processes computes on its share of every batch."""
    torch.save(layer.state_dict(), folder / "state.pt")
    torch.save(batches, folder / "batches.pt")
    run_twice([sys.executable, "-c", PROCESS], str(folder), json.dumps(sizes), json.dumps(layer.momentum))
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def run_twice(command, *arguments):
    """Run a program as process 0 and as process 1, which talk over the loopback interface."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": loopback}
    processes = [subprocess.Popen([*command, str(rank), *arguments], env=environment) for rank in (0, 1)]
    assert [process.wait(120) for process in processes] == [0, 0]


@pytest.mark.parametrize(("sizes", "momentum"), [([4, 4], 0.1), ([5, 3], None), ([8, 0], 0.1)])
def test_two_processes_are_batch_norm_on_the_joined_batch(tmp_path, sizes, momentum):
    cases = [make_case((8, 6, 3, 5)) for _ in range(2)]
    joined = nn.BatchNorm2d(6, momentum=momentum).double()
    with torch.no_grad():
        joined.weight.copy_(cases[0].weight)
        joined.bias.copy_(cases[0].bias)
    ranks = two_processes(tmp_path, joined, [(case.x, case.upstream) for case in cases], sizes)
    expected = {"y": [], "dx": []}
    for case in cases:
        x = case.x.clone().requires_grad_()
        y = joined(x)
        y.backward(case.upstream)
        expected["y"].append(y.detach())
        expected["dx"].append(x.grad)
    near = {"rtol": 0, "atol": rounding(torch.float64, case.x, torch.cat([*expected["y"], *expected["dx"]]))}
    for name, values in expected.items():
        for step, value in enumerate(values):
            torch.testing.assert_close(torch.cat([rank[name][step] for rank in ranks]), value, **near)
    # each process has the sums over its own samples; data parallelism adds them up
    torch.testing.assert_close(ranks[0]["dweight"] + ranks[1]["dweight"], joined.weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ranks[0]["dbias"] + ranks[1]["dbias"], joined.bias.grad, rtol=1e-12, atol=1e-12)
    for rank in ranks:
        torch.testing.assert_close(rank["state"], joined.state_dict(), **near)


def test_one_element_on_all_processes_together_is_refused(tmp_path):
    case = make_case((1, 6))
    ranks = two_processes(tmp_path, SyncBatchNorm(6).double(), [(case.x, case.upstream)], [1, 0])
    assert all("1 element for each mean and variance" in rank["error"] for rank in ranks)


def test_in_one_process_it_is_the_definition_and_torchs_own_class():
    case = make_case((8, 6, 3, 5))
    layer, torchs = SyncBatchNorm(6).double(), nn.SyncBatchNorm(6).double()

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert_agrees(run(function, case), case, batch_set())
    torchs(case.x)
    torch.testing.assert_close(layer.state_dict(), torchs.state_dict())
    torch.testing.assert_close(layer.eval()(case.x), torchs.eval()(case.x))


def test_torchs_computation_for_gpus_takes_this_class():
    """In one process it runs on a CPU too."""
    case = make_case((8, 6, 3, 5))
    layer, batch_norm = SyncBatchNorm(6).double(), nn.BatchNorm2d(6).double()
    assert torch.equal(nn.SyncBatchNorm.forward(layer, case.x), batch_norm(case.x))
    torch.testing.assert_close(layer.state_dict(), batch_norm.state_dict(), rtol=0, atol=0)


DATA_PARALLEL = """
import sys, torch, torch.distributed as dist
from torch import nn
from groupnorm.nn import SyncBatchNorm

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(2, 6, 3), SyncBatchNorm(6), nn.ReLU(), nn.Conv2d(6, 3, 1)).double()
x, upstream = torch.load(f"{folder}/batch.pt")
parallel = nn.parallel.DistributedDataParallel(model)
parallel(x.chunk(2)[rank]).backward(upstream.chunk(2)[rank])
torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
del parallel  # it holds the process group, whose threads would outlive the interpreter
dist.barrier()
dist.destroy_process_group()
"""


def test_data_parallel_training_on_cpus_is_that_of_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1)).double()
    x, upstream = torch.randn(8, 2, 6, 5).double(), torch.randn(8, 3, 4, 3).double()
    model(x).backward(upstream)
    torch.save((x, upstream), tmp_path / "batch.pt")
    run_twice([sys.executable, "-c", DATA_PARALLEL], str(tmp_path))
    for rank in (0, 1):
        for got, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), model.parameters(), strict=True):
            atol = 10 * rounding(torch.float64, x, parameter.grad)
            torch.testing.assert_close(2 * got, parameter.grad, rtol=0, atol=atol)  # the average of two processes


@pytest.mark.parametrize(("shape", "error"), [((1, 6), SingleElementError), ((4, 5, 2), ShapeError)])
def test_what_cannot_be_normalised_is_refused(shape, error):
    with pytest.raises(error, match=r"expected"):
        SyncBatchNorm(6)(torch.randn(shape))
