"""Who looks into the operations on tensors: then kernels, which nobody sees, give way to ATen's operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_function_stack_at,
    _is_tracing,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))


def watched(*tensors: Tensor | None) -> bool:
    """Whether something looks into the operations on tensors, and kernels would be a hole in what it sees.

    Asked in each call, so written out in one function that looks nothing up in the large module ``torch``: where the
    rest of a network comes between, all that Python touches has left the caches, and takes ten times as long.
    """
    if (
        is_compiling()
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _is_tracing()
        or _len_torch_dispatch_stack() > 0
        or (_len_torch_function_stack() > 0 and _has_function_mode())
    ):
        return True
    for t in tensors:  # noqa: SIM110 - any() takes twice the time
        if type(t) not in _PLAIN or (t is not None and t.is_neg()):
            return True
    return False


def transformed(*tensors: Tensor | None) -> bool:
    """Whether it has to see the operations of ATen: ``torch.func``, forward mode, a trace, a subclass of tensors."""
    if _are_functorch_transforms_active():
        return True
    if is_compiling():
        return False
    for t in tensors:
        if type(t) not in _PLAIN and type(t) is not FakeTensor:
            return True
    return forward_ad._current_level >= 0 or _is_tracing() or _has_function_mode()


def _has_function_mode() -> bool:
    """Whether a mode sees the functions that are called; the one of ``torch.device`` only makes new tensors there."""
    stack = (_get_function_stack_at(i) for i in range(_len_torch_function_stack()))
    return any(type(mode).__module__ != "torch.utils._device" for mode in stack)  # which the core does not import
