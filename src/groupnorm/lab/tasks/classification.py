"""Classification of images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from groupnorm.lab.common.metric import ERROR
from groupnorm.lab.data import load
from groupnorm.lab.tasks.base import Data, Task

_EVALUATION_PIXELS = 500 * 32 * 32  # images evaluated at a time, so that large ones fit into memory too


class Classification(Task):
    """One class for each image; scored by the share of wrong answers, in percent."""

    name = "classification"
    description = "one class for each image; error in percent"
    sample = "image"
    metric = ERROR
    dataset = "digits"
    model = "resnet-tiny"
    takes = frozenset({"limit_train", "limit_val", "image_size", "augment"})
    stackable = True
    output_name = "logits"

    def load(self, name: str, data_dir: Path | None, **limits: Any) -> Data:
        return load(name, data_dir, **limits)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).sum()

    def score(self, tally: float, samples: int, data: Data) -> float:
        return 100 * tally / samples

    def chance(self, data: Data) -> float:
        return 100.0 - 100.0 / data.outputs

    def evaluation_size(self, data: Data) -> int:
        pixels: int = math.prod(data.val_inputs.shape[2:])
        return min(500, max(1, _EVALUATION_PIXELS // pixels))
