"""Tables for regression: a row of numbers for each sample, and the number to predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from groupnorm.errors import UnknownNameError
from groupnorm.import_path import resolve
from groupnorm.lab.data.dataset import digest
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.source import choose, permutation

TRAIN = 332
"""Rows of "diabetes" to train on; the other 110 validate."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with a target each.

    Attributes:
        name: the name it was loaded by.
        train_inputs: ``[n, F]``, float32.
        train_targets: ``[n, 1]``, float32, with mean 0 and variance 1 over these rows.
        val_inputs: ``[m, F]``.
        val_targets: ``[m, 1]``, with the same scale and shift.
        target_std: that the targets were divided by, in their own unit.
        mean: ``[F]``, over the training rows.
        std: ``[F]``, of the same; 1 for a column that is constant.
        digest: 16 hexadecimal digits that change with any value.
        note: a caveat to show beside results.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    target_std: float
    mean: Tensor
    std: Tensor
    digest: str
    note: str = ""

    @property
    def outputs(self) -> int:
        """One number for each row."""
        return 1

    def batch(self, stored: Tensor) -> Tensor:
        """``(stored - mean) / std``, on the device of ``stored`` ``[b, F]``."""
        return (stored - self.mean.to(stored.device)) / self.std.to(stored.device)


def load_table(name: str, limit_train: int | None = None, limit_val: int | None = None) -> Table:
    """A table by its name; the same arguments give the same rows in the same order in every process.

    Args:
        name: a name of :data:`TABLES`, or ``package.module:function``, a function that returns
            ``(train_inputs, train_targets, val_inputs, val_targets)``: tensors or numpy arrays ``[n, F]`` and ``[n]``.
        limit_train: use only so many training rows, drawn at random but always the same. Default: all.
        limit_val: the same for validation.

    Raises:
        UnknownNameError: there is no such table.
        DataError: the arrays are not of this form.
    """
    if name in TABLES:
        arrays = TABLES[name]()
    elif ":" in name:
        arrays = resolve(name, "dataset")()
    else:
        raise UnknownNameError("dataset", name, [*TABLES, "package.module:function"])
    train_inputs, train_targets, val_inputs, val_targets = _checked(name, arrays)
    train = choose(len(train_inputs), limit_train, "limit_train")
    val = choose(len(val_inputs), limit_val, "limit_val")
    x, y = train_inputs[train], train_targets[train]
    std, target_std = x.std(0, correction=0), float(y.std(correction=0))
    if not target_std:
        raise DataError(f"dataset {name!r}: all {len(y)} training targets are {float(y[0]):g}; expected several values")
    parts = (x, (y - y.mean()) / target_std, val_inputs[val], (val_targets[val] - y.mean()) / target_std)
    return Table(name, *parts, target_std, x.mean(0), torch.where(std > 0, std, 1.0), digest(*parts))


def _diabetes() -> Any:
    """442 patients: ten measurements, and how the disease stands a year later (Efron et al. 2004)."""
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    train, val = permutation(len(targets)).tensor_split([TRAIN])
    return inputs[train.numpy()], targets[train.numpy()], inputs[val.numpy()], targets[val.numpy()]


TABLES: dict[str, Callable[[], Any]] = {"diabetes": _diabetes}


def _checked(name: str, arrays: Any) -> list[Tensor]:
    """The four arrays as tensors, if that is what they are."""
    if not isinstance(arrays, tuple | list) or len(arrays) != 4:
        raise DataError(
            f"dataset {name!r} returned {type(arrays).__name__}; expected (train_inputs, train_targets, val_inputs, "
            f"val_targets)"
        )
    tensors = []
    for what, array in zip(("train_inputs", "train_targets", "val_inputs", "val_targets"), arrays, strict=True):
        tensor = torch.as_tensor(array).float()
        axes = 2 if what.endswith("inputs") else 1
        if tensor.dim() != axes or not len(tensor) or not tensor.isfinite().all():
            raise DataError(
                f"dataset {name!r}: {what} has shape {tuple(tensor.shape)}; expected finite numbers in "
                f"{'[n, F]' if axes == 2 else '[n]'}, n at least 1"
            )
        tensors.append(tensor if axes == 2 else tensor[:, None])
    for part in (0, 2):
        if len(tensors[part]) != len(tensors[part + 1]):
            raise DataError(
                f"dataset {name!r}: {len(tensors[part])} rows have {len(tensors[part + 1])} targets; expected one for "
                f"each"
            )
    if tensors[0].shape[1] != tensors[2].shape[1]:
        raise DataError(
            f"dataset {name!r}: {tensors[0].shape[1]} columns in training and {tensors[2].shape[1]} in validation; "
            f"expected the same"
        )
    return tensors
