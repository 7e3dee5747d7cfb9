"""Modules applied one after the other, where a group norm takes over the activation that follows it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.nn.modules import module as _module

from groupnorm.conversion.fusion.activations import activation_of, passes, unseen
from groupnorm.nn.group_norm import GroupNorm


class Held(NamedTuple):
    """A group norm that has not run yet, and its input."""

    norm: GroupNorm
    input: Any


def hold(step: Any, x: Any) -> Any:
    """``step(x)`` for :func:`flow`; held back where the step is a group norm that can apply the activation after it.

    It is not held back where somebody sees its output: hooks, or a forward that was replaced.
    """
    if isinstance(x, Held) and passes(step):
        return x
    x = released(x)
    if is_ours(step) and step.activation is None and not unseen(step) and not _watched():
        return Held(step, x)
    return step(x)


def flow(step: Any, x: Any) -> Any:
    """``step(x)``, where a norm that was held back takes over the step if it is an activation that the norm can apply.

    The same as ``step(norm(...))``, whatever the two are at this moment.
    """
    if isinstance(x, Held):
        activation, why = activation_of(step)
        if activation and not why:
            return x.norm.activated(x.input, activation)
    return step(released(x))


def released(x: Any) -> Any:
    """The output of a norm that was held back; anything else as it is."""
    return x.norm(x.input) if isinstance(x, Held) else x


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
