"""Activations that can follow a normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GELU by a hyperbolic tangent."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
}
"""By name; "gelu" is the exact (erf) form."""


def activate(x: Tensor, activation: str | None) -> Tensor:
    """``x`` under an activation; itself for None."""
    return x if activation is None else ACTIVATIONS[activation](x)


def activation_gradient(dy: Tensor, z: Tensor, activation: str | None) -> Tensor:
    """``act'(z) * dy``."""
    aten = torch.ops.aten
    if activation == "relu":
        dz = aten.threshold_backward(dy, z, 0)
    elif activation == "silu":
        dz = aten.silu_backward(dy, z)
    elif activation is not None:
        dz = aten.gelu_backward(dy, z, approximate="tanh" if activation == "gelu_tanh" else "none")
    else:
        dz = dy
    return cast(Tensor, dz)
