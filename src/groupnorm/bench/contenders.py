"""Who is timed: each makes a norm with its activation out of PyTorch tensors, as its users would call it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from groupnorm.bench.cases import Case
from groupnorm.functional import group_norm
from groupnorm.ops.activation import activate

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``norm(x, weight, bias)`` is the output."""

OURS = "groupnorm"
TORCH = "torch"
COPY = "copy"


class Contender(NamedTuple):
    """One way to compute a case.

    Attributes:
        name: on the command line and in the results.
        title: in tables.
        make: the norm of a case.
        absence: ``absence(device)`` is why it does not take part; "" where it does.
    """

    name: str
    title: str
    make: Callable[[Case], Norm]
    absence: Callable[[str], str]


def ours(case: Case) -> Norm:
    """The package, with the backend that it chooses."""
    groups, activation = case.shape.groups, case.function
    return lambda x, weight, bias: group_norm(x, groups, weight, bias, activation=activation)


def eager(case: Case) -> Norm:
    """PyTorch's norm, then PyTorch's activation."""
    groups, activation = case.shape.groups, case.function
    return lambda x, weight, bias: activate(F.group_norm(x, groups, weight, bias), activation)


def compiled(case: Case) -> Norm:
    """The same through ``torch.compile``, for exactly this shape."""
    torch._dynamo.reset()
    return cast(Norm, torch.compile(eager(case), fullgraph=True, dynamic=False))


def liger(case: Case) -> Norm:
    """Liger-Kernel's norm, then PyTorch's activation."""
    function: Any = importlib.import_module("liger_kernel.ops.group_norm").LigerGroupNormFunction
    channels, groups, activation = case.shape.size[1], case.shape.groups, case.function
    return lambda x, w, b: activate(cast(Tensor, function.apply(x, w, b, channels, groups, 1e-5)), activation)


def _never(device: str) -> str:
    return ""


def _liger_absence(device: str) -> str:
    if importlib.util.find_spec("liger_kernel") is None:
        return "not installed: pip install liger-kernel"
    return "" if device == "cuda" else "its kernels are for GPUs"


PEERS = {
    peer.name: peer
    for peer in (
        Contender(TORCH, "torch eager", eager, _never),
        Contender("compile", "torch.compile", compiled, _never),
        Contender("liger", "Liger-Kernel", liger, _liger_absence),
    )
}
"""By name. The first is always needed: its error is the measure of others."""


def contenders(peers: list[str], device: str) -> dict[str, Contender]:
    """Ours, torch's and those of ``peers`` that can run on a device, by name."""
    chosen = {name: peer for name, peer in PEERS.items() if name in (TORCH, *peers) and not peer.absence(device)}
    return {OURS: Contender(OURS, OURS, ours, _never), **chosen}
