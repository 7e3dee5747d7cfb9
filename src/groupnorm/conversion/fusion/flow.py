"""Modules applied one after the other, where a group norm takes over the activation that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn.modules import module as _module

from groupnorm.conversion.fusion.activations import activation_of, passes, unseen
from groupnorm.nn.group_norm import GroupNorm


def flow(x: Any, *steps: Any) -> Any:
    """The same as ``steps[-1](...steps[1](steps[0](x)))``, whatever the steps are at this moment.

    Where one is a :class:`groupnorm.GroupNorm` and the next an activation that it can apply, it does, unless somebody
    looks at what is in between: hooks, or a forward that was replaced.
    """
    at = 0
    while at < len(steps):
        activation, after = taken_over(steps, at)
        x = steps[at].activated(x, activation) if activation else steps[at](x)
        at = after
    return x


def taken_over(steps: Sequence[Any], at: int) -> tuple[str | None, int]:
    """The activation that the step at this place takes over, None for none, and the place to go on at."""
    norm, after = steps[at], at + 1
    if not is_ours(norm) or norm.activation is not None or unseen(norm) or _watched():
        return None, after
    while after < len(steps) and passes(steps[after]):
        after += 1
    if after < len(steps):
        activation, why = activation_of(steps[after])
        if activation and not why:
            return activation, after + 1
    return None, at + 1


def is_ours(norm: Any) -> bool:
    """Whether calling a module is what :class:`groupnorm.GroupNorm` does."""
    return isinstance(norm, GroupNorm) and type(norm).forward is GroupNorm.forward


def _watched() -> bool:
    """Whether hooks are on all modules, as those of a profiler."""
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )
