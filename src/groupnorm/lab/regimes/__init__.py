"""How the data and the gradients come: the regimes, by name. Each wraps a task that allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from groupnorm.errors import UnknownNameError
from groupnorm.import_path import resolve
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.regimes.adversarial import Adversarial
from groupnorm.lab.regimes.federated import Federated
from groupnorm.lab.regimes.few_classes import FewClasses
from groupnorm.lab.tasks import Data, Task
from groupnorm.lab.training.loop import Training

__all__ = ["REGIMES", "find", "find_for", "training"]

REGIMES: dict[str, type[Training]] = {
    "standard": Training,
    "adversarial": Adversarial,
    "federated": Federated,
    "few-classes": FewClasses,
}


def find(name: str) -> Callable[[Cell, Any], Training]:
    """The regime of a name, or of ``package.module:Class``.

    Raises:
        UnknownNameError: there is no such regime.
        ArgumentError: the class cannot be imported.
    """
    if name in REGIMES:
        return REGIMES[name]
    if ":" not in name:
        raise UnknownNameError("regime", name, [*REGIMES, "package.module:Class"])
    found: Callable[[Cell, Any], Training] = resolve(name, "regime")
    return found


def find_for(task: str | None, regime: str) -> Callable[[Cell, Any], Training]:
    """The regime of a task. A task from before there were others is the path of its regime."""
    if regime == "standard" and task is not None and ":" in task:
        kind: Any = resolve(task, "task")
        if not (isinstance(kind, type) and issubclass(kind, Task)):
            return kind  # type: ignore[no-any-return]
    return find(regime)


def training(cell: Cell, dataset: Data) -> Training:
    """The training that a trial asks for, from its start.

    Raises:
        UnknownNameError: its task or its regime is unknown.
        ArgumentError: one of them cannot be imported.
    """
    return find_for(cell.task, cell.regime)(cell, dataset)
