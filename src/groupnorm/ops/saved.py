"""Values that a compiled backward pass is to use as the forward pass had them."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("groupnorm::saved", mutates_args=())
def _saved(x: Tensor) -> Tensor:
    return x.clone()


@_saved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def saved(x: Tensor) -> Tensor:
    """``x``, a number of the forward pass that comes from a buffer the forward pass moves on, for its backward pass.

    Eager autograd saves such a number. A compiled backward pass computes cheap numbers again instead, and reads the
    buffer for it when it has moved on, which gives wrong gradients and no error (pytorch/pytorch#197039, seen in torch
    2.15). It does not repeat an operation that it does not know, which is all that this is.

    Args:
        x: without gradient.
    """
    return _saved(x) if torch.compiler.is_compiling() else x
