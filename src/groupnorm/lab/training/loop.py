"""One training run, an epoch at a time. It prints nothing and touches no file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from groupnorm.errors import SingleElementError
from groupnorm.lab.common.metric import ERROR
from groupnorm.lab.common.rng import EPOCHS, get_state, seed_all, set_state
from groupnorm.lab.common.store import Record
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data.augmentation import augmentation
from groupnorm.lab.tasks import Data, task_of
from groupnorm.lab.training import optimizers
from groupnorm.nn import set_total_steps

_MARKS = (0.3, 0.6, 0.9)  # of the "step" schedule
_FINITE_CHECK = 100  # steps between two looks at the loss; each look waits for the device
_AUGMENT_SEED = 1 << 40  # keeps the draws of the augmentation apart from those of the order
_PREPARED_BYTES = 2**28  # training inputs of up to this size in float32 are prepared once, not at each step


class DivergedError(Exception):
    """The loss is no longer a finite number."""


class Training:
    """The state of one run: network, optimiser, position.

    The task of the cell has the data, the network, the loss and the metric. The optimiser updates all parameters; the
    learning rate is ``learning_rate * batch_size / 32`` (Goyal et al. 2017, as Wu & He 2018 use it) and falls along the
    cell's schedule. Each epoch visits the training samples in a new order and drops the last incomplete batch. Runs
    with the same seed start from the same weights and see the samples in the same order, whatever the norm, so that
    they can be compared in pairs. Norms with a schedule of their own are told how many steps the run has.

    A regime derives from this class and replaces ``build``, ``inputs``, ``order``, ``step`` or ``epoch``; one that
    measures more adds to ``measure``. It declares what it is capable of; what it does not declare, it is not.

    Args:
        cell: what to train.
        dataset: on what.

    Attributes:
        stackable: several seeds may be trained as one network, with the same bits
            (:mod:`groupnorm.lab.training.seed_stacking`): ``step`` and ``epoch`` are those of this class.
        parallel: several processes may share a batch: ``step``, ``epoch`` and ``batches`` are those of this class.
        options: names of the options that it takes besides those of the task; None where it does not say.
        tasks: names of the tasks that it can wrap; None is any.
        task: of the cell.
        model: the network.
        optimizer: over all its parameters.
        epochs_done: epochs behind us.
    """

    stackable: ClassVar[bool] = True
    parallel: ClassVar[bool] = True
    options: ClassVar[frozenset[str] | None] = frozenset()
    tasks: ClassVar[frozenset[str] | None] = None

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        for name, unknown in (("stackable", False), ("parallel", False), ("options", None)):
            setattr(cls, name, vars(cls).get(name, unknown))  # not inherited: the class may have broken it

    def __init__(self, cell: Cell, dataset: Data) -> None:
        self.cell, self.dataset, self.task = cell, dataset, task_of(cell)
        self.device = torch.device(cell.device)
        self.steps_per_epoch = len(dataset.train_targets) // cell.batch_size
        self.epochs_done = 0
        self._prepared: tuple[Tensor, Tensor] | None = None
        self._generators: dict[str, Any] | None = None
        self._rank = 0
        self._parallel: DistributedDataParallel | None = None
        seed_all(cell.seed)
        self.model = self.build().to(self.device)
        self.optimizer = optimizers.find(cell.optimizer)(self.model.parameters(), cell)
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
        example = self.inputs(self.dataset.train_inputs[:2])
        return self.task.build(self.cell.model, self.cell.norm, self.dataset, example)

    def inputs(self, stored: Tensor) -> Tensor:
        """What the network is given of stored inputs: each channel standardised."""
        return self.dataset.batch(stored)

    @property
    def epoch_seed(self) -> int:
        """A number that depends on the seed and the epoch alone."""
        return self.cell.seed * EPOCHS + self.epochs_done

    def order(self) -> Tensor:
        """Indices of the training samples in the order of this epoch; it depends on the seed and the epoch alone."""
        generator = torch.Generator().manual_seed(self.epoch_seed)
        return torch.randperm(len(self.dataset.train_targets), generator=generator)

    def measure(self) -> dict[str, float]:
        """What the record of an epoch tells besides: the metric on the validation data, and what a regime adds."""
        return self.evaluate(self.dataset.val_inputs, self.dataset.val_targets)

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
        loss, tally = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.model.train()
        for step, (inputs, targets) in enumerate(self.batches(), start=self.epochs_done * self.steps_per_epoch + 1):
            set_learning_rate(self.optimizer, self.learning_rate(step - 1))
            batch_loss, batch_tally = self.step(inputs, targets)
            loss += batch_loss
            tally += batch_tally
            if self.should_check_loss(step):
                check_finite(self._total(loss), step)
            on_step(step)
        return self.record(self._total(loss) / self.cell.processes, self._total(tally), time.perf_counter() - begin)

    def should_check_loss(self, step: int) -> bool:
        """Whether the loss is looked at after this step, counted from 1."""
        return step % _FINITE_CHECK == 0 or step % self.steps_per_epoch == 0

    def record(self, loss: Tensor, tally: Tensor, seconds: float) -> Record:
        """Close an epoch: measure, and return its record.

        Args:
            loss: sum of the mean losses of its batches.
            tally: sum of :meth:`groupnorm.lab.tasks.Task.tally` over its samples in training.
            seconds: that its training took. Where several seeds were trained as one network, that time divided by
                their number.
        """
        self.epochs_done += 1
        seen = self.steps_per_epoch * self.cell.batch_size
        metric = self.task.metric
        return {
            "kind": "epoch",
            "epoch": self.epochs_done,
            "step": self.epochs_done * self.steps_per_epoch,
            "loss": loss.item() / self.steps_per_epoch,
            metric.train_key: self.task.score(tally.item(), seen, self.dataset),
            **(self.measure() if self._rank == 0 else {}),
            "learning_rate": self.learning_rate(self.epochs_done * self.steps_per_epoch - 1),
            "seconds": seconds,
            self.task.record.rate: seen / seconds,
            **({} if metric == ERROR else {"metric": metric.key}),
        }

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """``(inputs, targets)`` of each step of this epoch; with several processes, the part of this one."""
        share = self._share()
        prepared = self._prepare() if self.cell.augment == "none" else None
        order = self.order().to(self.device if prepared else "cpu")  # once, not at each step
        parts = order.split(self.cell.batch_size)[: self.steps_per_epoch]
        if prepared:
            inputs, targets = prepared
            for chosen in parts:
                yield inputs[chosen[share]], targets[chosen[share]]
            return
        generator = torch.Generator().manual_seed(self.epoch_seed ^ _AUGMENT_SEED)
        shown = augmentation(self.cell.augment).batches(self.dataset.train_inputs, parts, generator, self.device, share)
        for chosen, images in zip(parts, shown, strict=True):
            yield self.inputs(images), self.dataset.train_targets[chosen[share]].to(self.device)

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
        """All training inputs and targets on the device; None where they are too many, or on disk."""
        stored = self.dataset.train_inputs
        if self._prepared is None and isinstance(stored, Tensor) and 4 * stored.numel() <= _PREPARED_BYTES:
            self._prepared = self.inputs(stored.to(self.device)), self.dataset.train_targets.to(self.device)
        return self._prepared

    @contextmanager
    def rng_scope(self) -> Iterator[None]:
        """Around what this training does where others run in the same process: its own state of all generators."""
        if self._generators is not None:
            set_state(self._generators, self.device)
        yield
        self._generators = get_state(self.device)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; returns the mean loss and the tally of the samples.

        With a normalisation batch the samples pass through the network in parts whose gradients are averaged, as
        those of the paper's workers: each part has its own batch statistics.
        """
        size = self.cell.statistics_batch
        loss, tally = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        network = self._parallel or self.model
        parts = list(zip(inputs.split(size), targets.split(size), strict=True))
        self.optimizer.zero_grad()
        for number, (part, target) in enumerate(parts, start=1):
            with self._gradients_kept(number < len(parts)):
                with self.autocast(), _single_elements():
                    outputs = self.task.forward(network, part, target)
                part_loss = self.task.loss(outputs, target) * (len(part) / len(inputs))
                part_loss.backward()
            loss += part_loss.detach()
            tally += self.task.tally(outputs.detach(), target)
        self.optimizer.step()
        return loss, tally

    def _gradients_kept(self, kept: bool) -> AbstractContextManager[Any]:
        """Around a pass whose gradients wait for those of the next, before they go to the other processes."""
        return self._parallel.no_sync() if kept and self._parallel is not None else nullcontext()

    def evaluate(self, inputs: Any, targets: Tensor) -> dict[str, float]:
        """The metric of the network over stored inputs, in evaluation mode."""
        self.model.eval()

        def predict(stored: Tensor) -> Tensor:
            with self.autocast():
                outputs: Tensor = self.model(self.inputs(stored.to(self.device)))
            return outputs

        with torch.inference_mode():
            return self.task.evaluate(predict, self.dataset, inputs, targets)

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
