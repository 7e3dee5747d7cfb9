"""Who looks into the operations on tensors: then kernels, which nobody sees, give way to ATen's operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor, type(None))


def watched(*tensors: Tensor | None) -> bool:
    """Whether something looks into the operations on tensors, and kernels would be a hole in what it sees."""
    return (
        torch.compiler.is_compiling()
        or transformed(*tensors)
        or FakeTensor in map(type, tensors)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def transformed(*tensors: Tensor | None) -> bool:
    """Whether it has to see the operations of ATen: ``torch.func``, forward mode, a trace, a subclass of tensors."""
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) not in _PLAIN:
            return True
    return forward_ad._current_level >= 0 or torch._C._get_tracing_state() is not None
