"""One training run, an epoch at a time. It prints nothing and touches no file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from groupnorm.errors import SingleElementError
from groupnorm.lab import models
from groupnorm.lab.common.import_path import resolve
from groupnorm.lab.common.rng import get_state, seed_all, set_state
from groupnorm.lab.common.store import Record
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import Dataset
from groupnorm.lab.data.augmentation import augmentation
from groupnorm.lab.data.dataset import Images
from groupnorm.nn import set_total_steps

_EVALUATION_PIXELS = 500 * 32 * 32  # images evaluated at a time, so that large ones fit into memory too
_MARKS = (0.3, 0.6, 0.9)  # of the "step" schedule
_FINITE_CHECK = 100  # steps between two looks at the loss; each look waits for the device
_AUGMENT_SEED = 1 << 40  # keeps the draws of the augmentation apart from those of the order
_PREPARED_BYTES = 2**28  # training images of up to this size in float32 are standardised once, not at each step


class DivergedError(Exception):
    """The loss is no longer a finite number."""


class Training:
    """The state of one run: network, optimiser, position.

    SGD with momentum and weight decay on all parameters; the learning rate is ``learning_rate * batch_size / 32``
    (Goyal et al. 2017, as Wu & He 2018 use it) and falls along the cell's schedule. Each epoch visits the
    training images in a new order and drops the last incomplete batch. Runs with the same seed start from the
    same weights and see the images in the same order, whatever the norm, so that they can be compared in pairs. Norms
    with a schedule of their own are told how many steps the run has.

    An experiment that trains in another way derives from this class and replaces ``build``, ``inputs``, ``order``,
    ``step`` or ``epoch``; one that measures more adds to ``measure``. Where ``step`` and ``epoch`` are
    these here, several seeds may be trained as one network (:mod:`groupnorm.lab.training.seed_stacking`), with the same
    bits.

    Args:
        cell: what to train.
        dataset: on what.

    Attributes:
        model: the network.
        optimizer: over all its parameters.
        epochs_done: epochs behind us.
    """

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        self.cell, self.dataset = cell, dataset
        self.device = torch.device(cell.device)
        self.steps_per_epoch = len(dataset.train_images) // cell.batch_size
        self.epochs_done = 0
        self._prepared: tuple[Tensor, Tensor] | None = None
        self._generators: dict[str, Any] | None = None
        self._rank = 0
        self._parallel: DistributedDataParallel | None = None
        seed_all(cell.seed)
        self.model = self.build().to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=cell.momentum, weight_decay=cell.weight_decay, fused=True
        )
        passes = cell.batch_size // cell.processes // cell.statistics_batch
        set_total_steps(self.model, self.steps_per_epoch * cell.epochs * passes)

    def join(self, rank: int) -> None:
        """Share every batch with the other processes of torch's default process group from now on.

        Each takes an equal part, one after the other, and gradients are averaged in the backward pass
        (:class:`torch.nn.parallel.DistributedDataParallel`). Before each forward pass the others take the buffers of
        process 0, such as the running statistics of a batch norm, and it alone measures: as in Wu & He 2018, these
        statistics are those of one worker. All that every process has to agree on, it has from the seed.

        Args:
            rank: of this process; it takes this part.
        """
        self._rank = rank
        # A network may have parameters that it does not use. To look for them also keeps the gradients in the order
        # they have at first, without which a resumed run would add them up in another order than an unbroken one.
        self._parallel = DistributedDataParallel(self.model, find_unused_parameters=True)

    def build(self) -> nn.Module:
        """The network, its weights drawn from torch's current random state."""
        example = self.inputs(self.dataset.train_images[:2])
        return models.build(self.cell.model, self.cell.norm, example, self.dataset.num_classes)

    def inputs(self, images: Tensor) -> Tensor:
        """What the network is shown of stored ``images`` ``[b, C, H, W]``: each channel standardised."""
        return self.dataset.batch(images)

    def order(self) -> Tensor:
        """Indices of the training images in the order of this epoch; it depends on the seed and the epoch alone."""
        generator = torch.Generator().manual_seed(self.cell.seed * 1_000_003 + self.epochs_done)
        return torch.randperm(len(self.dataset.train_images), generator=generator)

    def measure(self) -> dict[str, float]:
        """What the record of an epoch tells besides: the validation error, and what an experiment adds."""
        return {"error": self.error(self.dataset.val_images, self.dataset.val_labels)}

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epochs_done >= self.cell.epochs

    def epoch(self, on_step: Callable[[int], None] = lambda step: None) -> Record:
        """Train for one epoch, measure, and return the record.

        Args:
            on_step: called after each step with the number of steps done in all.

        Raises:
            DivergedError: the loss became NaN or infinite.
            SingleElementError: a norm has one element per statistic at this batch size.
        """
        begin = time.perf_counter()
        loss, errors = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.model.train()
        for step, (images, labels) in enumerate(self.batches(), start=self.epochs_done * self.steps_per_epoch + 1):
            set_learning_rate(self.optimizer, self.learning_rate(step - 1))
            batch_loss, batch_errors = self.step(images, labels)
            loss += batch_loss
            errors += batch_errors
            if self.looks(step):
                check_finite(self._total(loss), step)
            on_step(step)
        return self.record(self._total(loss) / self.cell.processes, self._total(errors), time.perf_counter() - begin)

    def looks(self, step: int) -> bool:
        """Whether the loss is looked at after this step, counted from 1."""
        return step % _FINITE_CHECK == 0 or step % self.steps_per_epoch == 0

    def record(self, loss: Tensor, errors: Tensor, seconds: float) -> Record:
        """Close an epoch: measure, and return its record.

        Args:
            loss: sum of the mean losses of its batches.
            errors: number of wrong answers in training.
            seconds: that its training took. Where several seeds were trained as one network, that time divided by
                their number.
        """
        self.epochs_done += 1
        images_seen = self.steps_per_epoch * self.cell.batch_size
        return {
            "kind": "epoch",
            "epoch": self.epochs_done,
            "step": self.epochs_done * self.steps_per_epoch,
            "loss": loss.item() / self.steps_per_epoch,
            "train_error": 100 * errors.item() / images_seen,
            **(self.measure() if self._rank == 0 else {}),
            "learning_rate": self.learning_rate(self.epochs_done * self.steps_per_epoch - 1),
            "seconds": seconds,
            "images_per_second": images_seen / seconds,
        }

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """``(inputs, labels)`` of each step of this epoch; with several processes, the part of this one."""
        share = self._share()
        prepared = self._prepare() if self.cell.augment == "none" else None
        order = self.order().to(self.device if prepared else "cpu")  # once, not at each step
        parts = order.split(self.cell.batch_size)[: self.steps_per_epoch]
        if prepared:
            inputs, labels = prepared
            for chosen in parts:
                yield inputs[chosen[share]], labels[chosen[share]]
            return
        seed = (self.cell.seed * 1_000_003 + self.epochs_done) ^ _AUGMENT_SEED
        generator = torch.Generator().manual_seed(seed)
        shown = augmentation(self.cell.augment).batches(self.dataset.train_images, parts, generator, self.device, share)
        for chosen, images in zip(parts, shown, strict=True):
            yield self.inputs(images), self.dataset.train_labels[chosen[share]].to(self.device)

    def _share(self) -> slice:
        """The part of each batch that this process takes."""
        if self.cell.processes > 1 and self._parallel is None:
            raise RuntimeError(
                f"the batches are shared by {self.cell.processes} processes, and this one has not joined the others; "
                f"expected join() before: see groupnorm.lab.training.ddp"
            )
        size = self.cell.batch_size // self.cell.processes
        return slice(self._rank * size, (self._rank + 1) * size)

    def _total(self, value: Tensor) -> Tensor:
        """The sum of a number over the processes of the cell."""
        if self._parallel is None:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def _prepare(self) -> tuple[Tensor, Tensor] | None:
        """All training inputs and labels on the device; None where they are too many, or on disk."""
        images = self.dataset.train_images
        if self._prepared is None and isinstance(images, Tensor) and 4 * images.numel() <= _PREPARED_BYTES:
            self._prepared = self.inputs(images.to(self.device)), self.dataset.train_labels.to(self.device)
        return self._prepared

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around what this training does where others run in the same process: its own state of all generators."""
        if self._generators is not None:
            set_state(self._generators, self.device)
        yield
        self._generators = get_state(self.device)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; returns the mean loss and the number of errors of the images.

        With a normalisation batch the images pass through the network in parts whose gradients are averaged, as
        those of the paper's workers: each part has its own batch statistics.
        """
        size = self.cell.statistics_batch
        loss, errors = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        network = self._parallel or self.model
        parts = list(zip(images.split(size), labels.split(size), strict=True))
        self.optimizer.zero_grad()
        for number, (part, target) in enumerate(parts, start=1):
            with self._gradients_kept(number < len(parts)):
                with self.autocast(), _single_elements():
                    logits = network(part)
                part_loss = F.cross_entropy(logits.float(), target) * (len(part) / len(images))
                part_loss.backward()
            loss += part_loss.detach()
            errors += (logits.detach().argmax(1) != target).sum()
        self.optimizer.step()
        return loss, errors

    def _gradients_kept(self, kept: bool) -> AbstractContextManager[Any]:
        """Around a pass whose gradients wait for those of the next, before they go to the other processes."""
        return self._parallel.no_sync() if kept and self._parallel is not None else nullcontext()

    def error(self, images: Images, labels: Tensor) -> float:
        """Error of the network in percent over stored images, in evaluation mode."""
        self.model.eval()
        size = min(500, max(1, _EVALUATION_PIXELS // math.prod(images.shape[2:])))
        wrong = 0
        with torch.inference_mode():
            for part, target in zip(images.split(size), labels.split(size), strict=True):
                with self.autocast():
                    logits = self.model(self.inputs(part.to(self.device)))
                wrong += int((logits.argmax(1).cpu() != target).sum())
        return 100 * wrong / len(images)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        peak = self.cell.learning_rate * self.cell.batch_size / 32
        epoch = step / self.steps_per_epoch
        if epoch < self.cell.warmup_epochs:
            return peak * (step + 1) / (self.cell.warmup_epochs * self.steps_per_epoch)
        done = epoch / self.cell.epochs
        if self.cell.schedule == "step":
            return peak * 0.1 ** sum(done >= mark for mark in _MARKS)
        return peak * 0.5 * (1 + math.cos(math.pi * done))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the cell, around a pass through the network."""
        if self.cell.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if there had been no break."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs_done": self.epochs_done,
            "random": get_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs_done = state["epochs_done"]
        set_state(state["random"], self.device)


def training(cell: Cell, dataset: Dataset) -> Training:
    """The training that a cell asks for, from its start.

    Raises:
        ArgumentError: its task cannot be imported.
    """
    kind = Training if cell.task is None else resolve(cell.task, "task")
    return cast(Training, kind(cell, dataset))


@contextmanager
def _single_elements() -> Iterator[None]:
    """Give torch's own refusal of one element per statistic (BatchNorm, a plain ValueError) the package's name."""
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError and "Expected more than 1 value per channel" in str(error):
            raise SingleElementError(str(error)) from error
        raise


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """From the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def check_finite(loss: Tensor, step: int) -> None:
    """Raise :class:`DivergedError` unless the sum of the losses up to ``step`` is a number."""
    if not math.isfinite(value := loss.item()):
        raise DivergedError(f"the training loss became {value} within the {_FINITE_CHECK} steps before step {step}")
