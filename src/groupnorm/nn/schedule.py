"""Norms whose hyper-parameters change during training, and how they learn how long it will be."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from groupnorm.nn.base import check_count


@runtime_checkable
class Scheduled(Protocol):
    """A norm with a schedule. It counts its own training steps, and without a length follows the published counts."""

    def set_total_steps(self, steps: int) -> None:
        """Fit the published schedule to a training of ``steps`` forward passes."""


def set_total_steps(model: nn.Module, steps: int) -> int:
    """Tell every norm with a schedule how many training steps the run has; a training loop calls it once.

    Published schedules count steps of trainings of several 100,000: batch renormalisation is batch norm for its first
    5,000. In a run of 2,000 steps that would be the whole run, so the schedules shrink with it.

    Args:
        model: the network.
        steps: training forward passes of the whole run, at least 1.

    Returns:
        How many norms have a schedule.

    Raises:
        ArgumentError: ``steps`` is not an integer of at least 1.
    """
    check_count("steps", steps)
    scheduled = [module for module in model.modules() if isinstance(module, Scheduled)]
    for module in scheduled:
        module.set_total_steps(steps)
    return len(scheduled)
