"""Which activations a group norm can apply itself, and modules that someone looks into."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu",
    F.silu: "silu", F.gelu: "gelu",
}  # fmt: skip
"""Functions that are the same as a name of :data:`groupnorm.functional.ACTIVATIONS`, when they get a tensor alone."""

_MODULES: dict[type, str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.GELU: "gelu"}
_SIGHTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def activation_of(module: Any) -> tuple[str, str]:
    """The name of the activation that a module or function is, "" where it is none of ours; and why it has to stay."""
    if not isinstance(module, nn.Module):
        try:
            return FUNCTIONS.get(module, ""), ""
        except TypeError:  # not hashable
            return "", ""
    kind = next((name for kind, name in _MODULES.items() if isinstance(module, kind)), "")
    if not kind:
        return "", ""
    if type(module) not in _MODULES:
        return kind, f"{type(module).__name__} is a subclass of an activation"
    if kind == "gelu" and module.approximate != "none":
        kind = f"gelu_{module.approximate}"
    return kind, unseen(module)


def unseen(module: nn.Module) -> str:
    """Why the output of a module may not change: "" where nobody looks at it."""
    if any(getattr(module, name, None) for name in _SIGHTS):
        return f"{type(module).__name__} has hooks"
    if "forward" in vars(module):
        return f"the forward of this very {type(module).__name__} was replaced"
    return ""


def passes(module: Any) -> bool:
    """Whether a module hands on its input, and nobody looks."""
    return type(module) is nn.Identity and not unseen(module)
