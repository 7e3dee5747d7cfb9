"""What a task says: its data, its network, one pass of training, and how it is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from groupnorm.errors import ArgumentError
from groupnorm.lab import models
from groupnorm.lab.common.metric import Metric, TaskRecord


class Data(Protocol):
    """Inputs with targets, for training and for validation."""

    @property
    def name(self) -> str:
        """The name it was loaded by."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any of its values."""

    @property
    def note(self) -> str:
        """A caveat to show beside results; "" if none."""

    @property
    def outputs(self) -> int:
        """Number of outputs that a network needs."""

    @property
    def train_inputs(self) -> Any:
        """``[n, ...]``, as they are stored; indexed with a tensor, they give a tensor."""

    @property
    def train_targets(self) -> Tensor:
        """``[n, ...]``."""

    @property
    def val_inputs(self) -> Any:
        """``[m, ...]``."""

    @property
    def val_targets(self) -> Tensor:
        """``[m, ...]``."""

    def batch(self, stored: Tensor) -> Tensor:
        """What a network is given of stored inputs, on their device."""


class Task(ABC):
    """What is learned, and how it is scored.

    Derive from it for a task of your own, and give its path as ``--task package.module:Class``. The docstring of each
    method says what the loop of :mod:`groupnorm.lab.training.loop` needs of it.

    Attributes:
        name: on the command line.
        description: in a line.
        sample: what one sample is called: "image", "row".
        metric: that it is scored by.
        dataset: used where none is named.
        model: used where none is named.
        takes: options of :class:`groupnorm.lab.Comparison` that only some tasks have, of "image_size", "augment",
            "limit_train" and "limit_val".
        options: names of the further options that it takes.
        stackable: several seeds may be trained as one network. It needs inputs ``[N, C, H, W]`` and outputs ``[N, K]``.
        splittable: a batch may pass through the network in parts (``normalization_batches``).
        parallel: several processes may share a batch.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    sample: ClassVar[str] = "sample"
    metric: ClassVar[Metric]
    dataset: ClassVar[str]
    model: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset({"limit_train", "limit_val"})
    options: ClassVar[frozenset[str]] = frozenset()
    stackable: ClassVar[bool] = False
    splittable: ClassVar[bool] = True
    parallel: ClassVar[bool] = True

    @property
    def record(self) -> TaskRecord:
        """What the store keeps of it."""
        return TaskRecord(self.name, self.sample, self.metric)

    @abstractmethod
    def load(self, name: str, data_dir: Path | None, **limits: Any) -> Data:
        """The data of a name; the same arguments give the same data in every process.

        Args:
            name: of the dataset.
            data_dir: where datasets lie and are downloaded to; None is the default folder.
            **limits: those of the options in :attr:`takes` that concern data; None where they are not given.
        """

    def build(self, model: str, norm: str, data: Data, example: Tensor) -> nn.Module:
        """A network with a norm, its weights drawn from torch's current random state.

        Args:
            model: as :func:`groupnorm.lab.models.find` takes it.
            norm: its spec.
            data: that it learns from.
            example: two inputs, as it is given them.
        """
        return models.build(model, norm, example, data.outputs)

    def example(self, data: Data) -> Tensor:
        """Two inputs, as a network is given them."""
        return data.batch(data.train_inputs[:2])

    def check_output(self, output: Any, data: Data, samples: int) -> None:
        """Raise ArgumentError unless a network's output for so many samples is what :meth:`forward` needs."""
        expected = (samples, data.outputs)
        if not isinstance(output, Tensor) or output.shape != expected:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ArgumentError(f"its output is {got}; expected {self.output_name} {expected}")

    output_name: ClassVar[str] = "outputs"

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of some samples, to be minimised."""

    @abstractmethod
    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A number whose sum over samples tells the metric, such as that of wrong answers."""

    @abstractmethod
    def score(self, tally: float, samples: int, data: Data) -> float:
        """The metric of so many samples, from the sum of :meth:`tally`."""

    @abstractmethod
    def chance(self, data: Data) -> float:
        """The metric of who knows the targets' distribution alone, and not the inputs."""

    def evaluation_size(self, data: Data) -> int:
        """Samples that are evaluated at a time."""
        return 500

    def forward(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs of a network in training; :meth:`loss` takes them."""
        outputs: Tensor = network(inputs)
        return outputs

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], data: Data, inputs: Any, targets: Tensor
    ) -> dict[str, float]:
        """What the record of an epoch says of stored inputs: the metric, and more under other names.

        Args:
            predict: from stored inputs to the outputs of the network, in evaluation mode and without gradients.
            data: that they belong to.
            inputs: stored ones.
            targets: of these.
        """
        tally, size = 0.0, self.evaluation_size(data)
        for part, target in zip(inputs.split(size), targets.split(size), strict=True):
            tally += float(self.tally(predict(part).cpu(), target))
        return {self.metric.key: self.score(tally, len(targets), data)}
