"""What every launch has in common, and the memory that kernels fill."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from groupnorm.ops.checks import address
from groupnorm.ops.spec import Spec


def launch(kernel: Any, programs: int, warps: int, x: Tensor, *arguments: Any, registers: int | None = None) -> None:
    """Launch a kernel on the device of its first argument, whichever is the current one.

    Args:
        kernel: what to launch.
        programs: how often.
        warps: of each program.
        x: its first argument.
        arguments: the others.
        registers: at most so many for a thread, so that more programs run at once; a matter of NVIDIA's compiler.
    """
    for tensor in (x, *arguments):
        if isinstance(tensor, Tensor):
            address(tensor)
    options = {} if registers is None or torch.version.hip else {"maxnreg": registers}
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *arguments, num_warps=warps, **options)


def blank(spec: Spec, x: Tensor, *shape: int) -> Tensor:
    """A tensor in the dtype of sums, on the device of ``x``; nothing is in it yet."""
    return torch.empty(shape, dtype=spec.accumulates, device=x.device)


def pair(spec: Spec, x: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Two such tensors."""
    return blank(spec, x, *shape), blank(spec, x, *shape)


def counters(x: Tensor, spans: int) -> Tensor:
    """Zeros for programs to count with; see :mod:`groupnorm.ops.triton.order`."""
    return torch.zeros(1 + spans, dtype=torch.int32, device=x.device)


def dense(parameter: Tensor | None) -> Tensor | None:
    """A parameter as kernels read it."""
    return None if parameter is None else parameter.contiguous()
