"""The activations that a norm can contain, as modules of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}
"""Under the names of :data:`groupnorm.functional.ACTIVATIONS`."""
