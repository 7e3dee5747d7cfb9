"""Regression of one number from a row of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groupnorm.lab.common.metric import Metric
from groupnorm.lab.data.table import Table, load_table
from groupnorm.lab.tasks.base import Data, Task


class Regression(Task):
    """One number for each row of a table; scored by the root of the mean square error, in the unit of the targets.

    The network learns targets with mean 0 and variance 1.
    """

    name = "regression"
    description = "one number for each row of a table; root mean square error"
    sample = "row"
    metric = Metric("rmse", "RMSE")
    dataset = "diabetes"
    model = "mlp-small"

    def load(self, name: str, data_dir: Path | None, **limits: Any) -> Data:
        return load_table(name, limits.get("limit_train"), limits.get("limit_val"))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs.float(), targets)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.float() - targets).square().sum()

    def score(self, tally: float, samples: int, data: Data) -> float:
        assert isinstance(data, Table)
        return float((tally / samples) ** 0.5) * data.target_std

    def chance(self, data: Data) -> float:
        tally = self.tally(torch.zeros_like(data.val_targets), data.val_targets)
        return self.score(float(tally), len(data.val_targets), data)
