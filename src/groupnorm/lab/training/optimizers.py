"""The optimisers that trials may have, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.import_path import resolve
from groupnorm.lab.common.trial import Cell

Make = Callable[[Iterable[nn.Parameter], Cell], torch.optim.Optimizer]


def _sgd(parameters: Iterable[nn.Parameter], cell: Cell) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0, momentum=cell.momentum, weight_decay=cell.weight_decay, fused=True)


def _adamw(parameters: Iterable[nn.Parameter], cell: Cell) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=cell.weight_decay, fused=True)


OPTIMIZERS: dict[str, Make] = {"sgd": _sgd, "adamw": _adamw}
"""SGD has momentum and weight decay of the trial, AdamW its weight decay. The loop sets the learning rate."""


def find(name: str) -> Make:
    """What makes an optimiser, from parameters and the trial.

    Args:
        name: a key of :data:`OPTIMIZERS`, or ``package.module:function`` of the user's own, which is called with the
            parameters and returns a ``torch.optim.Optimizer``.

    Raises:
        UnknownNameError: it is neither.
        ArgumentError: the function cannot be imported, or returns something else.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if ":" not in name:
        raise UnknownNameError("optimizer", name, [*OPTIMIZERS, "package.module:function"])
    function: Any = resolve(name, "optimizer")

    def make(parameters: Iterable[nn.Parameter], cell: Cell) -> torch.optim.Optimizer:
        optimizer = function(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentError(
                f"optimizer {name!r} returned {type(optimizer).__name__}; expected a torch.optim.Optimizer"
            )
        return optimizer

    return make
