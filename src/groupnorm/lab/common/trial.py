"""One training run: everything that determines its result, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

from groupnorm.lab.common.text import readable

Status = Literal["pending", "running", "finished", "undefined", "diverged", "crashed"]
"""Where a cell stands. "undefined": the norm has one element per statistic in this network at this batch size.
"diverged": the loss became NaN or infinite. "crashed": an exception, or the worker process was killed."""

FINAL: frozenset[str] = frozenset({"finished", "undefined", "diverged"})
"""Results that a repetition would only repeat; a crashed cell is tried again by the next sweep."""


class Cell(BaseModel):
    """A network trained with one norm, batch size and seed.

    Attributes:
        dataset: name of the dataset, as :func:`groupnorm.lab.data.load` takes it.
        data_digest: digest of the images and labels that the name stood for.
        model: name of the network, as :func:`groupnorm.lab.models.build` takes it.
        norm: spec of the normalisation, as :func:`groupnorm.norm_layer` takes it.
        batch_size: images per step of the optimiser.
        normalization_batch: images that pass through the network together and so share batch statistics; None
            is ``batch_size``, or the part of it that one of several processes takes. It stands for the images per
            worker of the paper (Wu & He 2018, section 4.1).
        seed: of the initial weights and of the order of the images.
        epochs: passes over the training images.
        learning_rate: for 32 images; the rate used is ``learning_rate * batch_size / 32`` (Goyal et al. 2017).
        momentum: of SGD.
        weight_decay: of SGD, on all parameters (as in Wu & He 2018).
        limit_train: number of training images used; None is all.
        limit_val: number of validation images used; None is all.
        image_size: side in pixels to which images are resized; None keeps them.
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" for autocast.
        threads: CPU threads of the worker; part of the identity because it changes the order of summation.
        schedule: of the learning rate: "cosine", to zero along half a cosine, or "step", divided by 10 after 30%,
            60% and 90% of the epochs (Wu & He 2018, section 4.1).
        warmup_epochs: epochs in which the learning rate first rises from zero in a straight line (Goyal et al. 2017).
        augment: what happens to each training image, "none" is nothing; see
            :mod:`groupnorm.lab.data.augmentation`.
        processes: processes that each take an equal part of every batch, with gradients averaged over all of them.
        task: what is learned, as :func:`groupnorm.lab.tasks.find` takes it; None is classification. Of trials from
            before there were other tasks, the path of their regime.
        regime: how the data and the gradients come, as :func:`groupnorm.lab.regimes.find` takes it.
        optimizer: as :func:`groupnorm.lab.training.optimizers.find` takes it.
        options: what task and regime take besides.
        model_digest: digest of the network that the name stood for; None for a network of this package.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    data_digest: str
    model: str
    norm: str
    batch_size: int
    normalization_batch: int | None
    seed: int
    epochs: int
    learning_rate: float
    momentum: float
    weight_decay: float
    limit_train: int | None
    limit_val: int | None
    image_size: int | None
    device: str
    precision: str
    threads: int
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: float = 0.0
    augment: str = "none"
    processes: int = 1
    task: str | None = None
    options: dict[str, Any] = {}
    model_digest: str | None = None
    regime: str = "standard"
    optimizer: str = "sgd"

    @property
    def id(self) -> str:
        """A readable name that is unique to the configuration, fit for a folder: ``gn-bs2-seed0-1f3a9c2e``.

        What is left at its default does not count, so that a cell keeps its name when cells learn something new.
        """
        try:
            content = self.model_dump_json(exclude_defaults=True)
        except PydanticSerializationError:  # a name that no encoding has
            named = {
                name: readable(getattr(self, name))
                for name in ("dataset", "model", "task", "options", "regime", "optimizer")
            }
            content = self.model_copy(update=named).model_dump_json(exclude_defaults=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        nb = f"-nb{self.normalization_batch}" if self.normalization_batch else ""
        norm = re.sub(r"[^a-z0-9]+", "", self.norm.lower())
        return f"{norm}-bs{self.batch_size}{nb}-seed{self.seed}-{digest}"

    @property
    def statistics_batch(self) -> int:
        """Images that share one forward pass, and so the statistics of a batch norm."""
        return self.normalization_batch or self.batch_size // self.processes


def varied(cells: Sequence[Cell]) -> str:
    """The column that a sweep varies: "batch_size" or "normalization_batch"."""
    one_batch_size = len({cell.batch_size for cell in cells}) == 1
    several = len({cell.statistics_batch for cell in cells}) > 1
    return "normalization_batch" if one_batch_size and several else "batch_size"
