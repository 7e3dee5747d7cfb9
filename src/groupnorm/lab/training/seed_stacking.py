"""Several seeds of one cell trained as one network, each with the very bits it has alone.

A small network is slow because its steps are many and tiny. Here the seeds' channels lie side by side: images
``[N, S * C, H, W]``, one convolution with groups for S of them, one batch or group norm over all channels. Layers that
are not known to keep channels apart run for each seed on its part. Whether the bits are the same, and the time
is shorter, is not believed but tried, in a few steps on copies; where not, each seed is trained alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from groupnorm.functional import explain, group_norm
from groupnorm.lab.common.rng import get_state, set_state
from groupnorm.lab.common.store import Record
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.models.convolution import Conv2d, StackedConv2d
from groupnorm.lab.tasks import task_of
from groupnorm.lab.training.loop import DivergedError, Training, check_finite, set_learning_rate
from groupnorm.nn import GroupNorm

SEEDS = 16
"""At most so many are trained together: with twice as many a step of the digits is 5% faster at best, but the first
result comes twice as late."""

_TRIAL_STEPS = 4  # of each seed, alone and stacked; the first is not timed
_WORTHWHILE_STEPS = 20 * _TRIAL_STEPS  # left in the run, for the trial to pay
_PARAMETERS = 2**26  # of all seeds; the trial has five copies of each: 1.3 GB
_POSITIONS = 2**17  # S * N * H * W; above, a step is long enough to fill a core, and memory counts
_APART = (nn.ReLU, nn.SiLU, nn.GELU, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def may_stack(cell: Cell) -> bool:
    """Whether the seeds of a cell could be trained together at all."""
    return cell.device == "cpu" and cell.precision == "fp32" and cell.processes == 1 and task_of(cell).stackable


def company(run: Training) -> int:
    """Number of seeds of its cell that a training is worth being tried with, itself included; 1 is none."""
    cell = run.cell
    left = (cell.epochs - run.epochs_done) * run.steps_per_epoch
    if (
        not may_stack(cell)
        or not run.stackable
        or type(run.optimizer) is not torch.optim.SGD
        or left * cell.batch_size < _WORTHWHILE_STEPS * cell.statistics_batch
    ):
        return 1
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    height, width = map(int, run.dataset.train_inputs.shape[2:])
    room = min(_POSITIONS // (cell.statistics_batch * height * width), _PARAMETERS // max(1, parameters), SEEDS)
    return max(1, room)


def stack(runs: Sequence[Training]) -> Stack | None:
    """The trainings as one, where that gives the bits of each alone and is faster; None where it does not.

    Args:
        runs: trainings of one cell with different seeds, each after the same number of epochs, at least two.
    """
    first = runs[0]
    if company(first) < len(runs):
        return None
    before = get_state(first.device)
    try:
        times = _trial(runs)
        return Stack(runs) if times is not None and times[0] < times[1] else None
    except (Exception, SystemExit):  # whatever it is, it shows again in the training alone, which knows what to do
        return None
    finally:
        set_state(before, first.device)


class Stack:
    """Trainings of one cell with different seeds, as one.

    Between two calls each training stands as if it had been trained alone.

    Args:
        runs: the trainings.

    Attributes:
        network: takes the images of all seeds ``[N, S * C, H, W]``, returns their logits ``[N, S * K]``.
    """

    def __init__(self, runs: Sequence[Training]) -> None:
        self.runs, self.task = list(runs), runs[0].task
        self._shares: list[tuple[Tensor, list[Tensor]]] = []
        self.network = self._join([run.model for run in runs], {})
        options = {k: v for k, v in runs[0].optimizer.param_groups[0].items() if k != "params"}
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, **options)
        self._read_momentum()

    def epoch(self, on_step: Callable[[int], None] = lambda step: None) -> list[Record | DivergedError]:
        """Train each seed for one epoch and return its record, or why it has none.

        Each record's ``seconds`` are those of the epoch divided by the number of seeds.
        """
        begin = time.perf_counter()
        first = self.runs[0]
        losses, errors = torch.zeros(len(self.runs)), torch.zeros(len(self.runs))
        diverged: dict[int, DivergedError] = {}
        self.network.train()
        batches = zip(*(run.batches() for run in self.runs), strict=True)
        for step, batch in enumerate(batches, start=first.epochs_done * first.steps_per_epoch + 1):
            set_learning_rate(self.optimizer, first.learning_rate(step - 1))
            batch_losses, batch_errors = self.step(*join_batches(batch))
            losses += batch_losses
            errors += batch_errors
            if first.should_check_loss(step):
                for seed in range(len(self.runs)):
                    try:
                        check_finite(losses[seed], step)
                    except DivergedError as error:
                        diverged.setdefault(seed, error)
                if len(diverged) == len(self.runs):
                    break
            on_step(step)
        self.write_back()
        seconds = (time.perf_counter() - begin) / len(self.runs)
        found: list[Record | DivergedError] = []
        for seed, run in enumerate(self.runs):
            if seed in diverged:
                found.append(diverged[seed])
                continue
            with run.rng_scope():
                found.append(run.record(losses[seed], errors[seed], seconds))
        return found

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every seed, as :meth:`Training.step` takes it.

        Args:
            images: ``[N, S * C, H, W]``.
            labels: ``[N, S]``.

        Returns:
            Mean loss and number of errors of the batch for each seed, ``[S]``.
        """
        size = self.runs[0].cell.statistics_batch
        losses, errors = torch.zeros(len(self.runs)), torch.zeros(len(self.runs))
        self.optimizer.zero_grad()
        for part, target in zip(images.split(size), labels.split(size), strict=True):
            logits = self.network(part).unflatten(1, (len(self.runs), -1))
            each = [
                self.task.loss(mine, target[:, seed]) * (len(part) / len(images))
                for seed, mine in enumerate(logits.unbind(1))
            ]
            part_losses = torch.stack(each)
            part_losses.sum().backward()
            losses += part_losses.detach()
            tallies = [self.task.tally(mine, target[:, seed]) for seed, mine in enumerate(logits.detach().unbind(1))]
            errors += torch.stack(tallies)
        self.optimizer.step()
        return losses, errors

    def write_back(self) -> None:
        """Give each training its parameters, buffers and momentum."""
        with torch.no_grad():
            for shared, own in self._shares:
                for mine, part in zip(own, _parts(shared, own), strict=True):
                    mine.copy_(part)
            for run in self.runs:
                set_learning_rate(run.optimizer, self.optimizer.param_groups[0]["lr"])
                for parameter in run.model.parameters():
                    if parameter in self.optimizer.state:
                        run.optimizer.state[parameter] = self.optimizer.state[parameter]
            for shared, own in self._shares:
                momentum = self.optimizer.state.get(shared, {}).get("momentum_buffer")
                if momentum is not None:
                    for run, mine, part in zip(self.runs, own, _parts(momentum, own), strict=True):
                        run.optimizer.state[mine]["momentum_buffer"] = part.clone()

    def _read_momentum(self) -> None:
        for run in self.runs:
            for parameter, state in run.optimizer.state.items():
                self.optimizer.state[parameter] = state
        for shared, own in self._shares:
            states = [run.optimizer.state.get(mine) for run, mine in zip(self.runs, own, strict=True)]
            for mine in own:
                self.optimizer.state.pop(mine, None)
            buffers = [state["momentum_buffer"] for state in states if state and state["momentum_buffer"] is not None]
            if len(buffers) == len(own):
                self.optimizer.state[shared]["momentum_buffer"] = torch.cat(buffers)

    def _join(self, modules: list[nn.Module], done: dict[nn.Module, nn.Module]) -> nn.Module:
        """One module for those at the same place of each seed's network."""
        first = modules[0]
        if first not in done:
            done[first] = self._joined(modules, done)
        return done[first]

    def _joined(self, modules: list[nn.Module], done: dict[nn.Module, nn.Module]) -> nn.Module:
        first = modules[0]
        plain = not (parametrize.is_parametrized(first) or first._forward_hooks or first._forward_pre_hooks)
        if plain and type(first) in _TOGETHER:
            joined: nn.Module = _TOGETHER[type(first)](modules)
            for name, shared in (*joined.named_parameters(recurse=False), *joined.named_buffers(recurse=False)):
                self._shares.append((shared, [getattr(module, name) for module in modules]))
            return joined
        if plain and type(first) in _APART:
            return first
        own = [*first.parameters(recurse=False), *first.buffers(recurse=False)]
        if not plain or own or not first._modules:
            return EachAlone(modules)
        container = copy.copy(first)
        container._modules = {
            name: None if child is None else self._join([module.get_submodule(name) for module in modules], done)
            for name, child in first._modules.items()
        }
        return container


class StackedBatchNorm(nn.Module):
    """One batch norm over the channels of several."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, modules: Sequence[nn.BatchNorm2d]) -> None:
        super().__init__()
        first = modules[0]
        if first.momentum is None:
            raise ValueError("momentum is None; expected a number: a cumulative average needs the count")
        self.eps, self.momentum, self.track = first.eps, first.momentum, first.track_running_stats
        _join_tensors(self, modules, ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked"))

    def forward(self, x: Tensor) -> Tensor:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )


class StackedGroupNorm(nn.Module):
    """One group norm over the channels of several, with the groups of all, by the backend that each has alone."""

    weight: Tensor | None
    bias: Tensor | None
    activation: str | None
    backend: str

    def __init__(self, modules: Sequence[nn.GroupNorm]) -> None:
        super().__init__()
        first = modules[0]
        self.seeds, self.groups, self.eps = len(modules), first.num_groups, first.eps
        self.activation, self.backend = None, "native"
        if isinstance(first, GroupNorm):
            self.activation, self.backend = first.activation, first.backend
        _join_tensors(self, modules, ("weight", "bias"), ())

    def forward(self, x: Tensor) -> Tensor:
        one = x[:, : x.shape[1] // self.seeds]
        backend = explain(one, self.groups, activation=self.activation, backend=self.backend).chosen
        groups, activation = self.groups * self.seeds, self.activation
        return group_norm(x, groups, self.weight, self.bias, self.eps, activation=activation, backend=backend)


class EachAlone(nn.Module):
    """Any modules, each applied to the channels of its seed."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.each = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.each), 1)
        return torch.cat([module(part.contiguous()) for module, part in zip(self.each, parts, strict=True)], 1)


_TOGETHER: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Conv2d: StackedConv2d,
    Conv2d: StackedConv2d,
    nn.BatchNorm2d: StackedBatchNorm,
    nn.GroupNorm: StackedGroupNorm,
    GroupNorm: StackedGroupNorm,
}


def join_batches(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images ``[N, S * C, H, W]`` and labels ``[N, S]`` of the seeds' batches."""
    return torch.cat([images for images, _ in batches], 1), torch.stack([labels for _, labels in batches], 1)


def _join_tensors(
    joined: nn.Module, modules: Sequence[nn.Module], parameters: tuple[str, ...], buffers: tuple[str, ...]
) -> None:
    for name in (*parameters, *buffers):
        own = [getattr(module, name) for module in modules]
        tensor = None if own[0] is None else torch.cat([t.detach().reshape(-1) for t in own])
        if name in parameters:
            joined.register_parameter(name, None if tensor is None else nn.Parameter(tensor))
        else:
            joined.register_buffer(name, tensor)


def _parts(shared: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(mine.shape) for part, mine in zip(shared.chunk(len(own)), own, strict=True)]


def _trial(runs: Sequence[Training]) -> tuple[float, float] | None:
    """Train copies for a few steps, stacked and alone: seconds of each, or None where any bit differs."""
    random = get_state(runs[0].device)
    batches = []
    for run in runs:
        batches.append(list(islice(run.batches(), _TRIAL_STEPS)))
    alone, copies = [_copy(run) for run in runs], [_copy(run) for run in runs]
    together = Stack(copies)
    seconds: dict[str, list[float]] = {"alone": [], "together": []}
    equal = True
    for step, batch in enumerate(zip(*batches, strict=True)):
        done = runs[0].epochs_done * runs[0].steps_per_epoch + step
        for one in alone:
            set_learning_rate(one.optimizer, one.learning_rate(done))
        set_learning_rate(together.optimizer, runs[0].learning_rate(done))
        begin = time.perf_counter()
        together.network.train()
        both = together.step(*join_batches(batch))
        middle = time.perf_counter()
        for seed, (run, (images, labels)) in enumerate(zip(alone, batch, strict=True)):
            run.model.train()
            loss, errors = run.step(images, labels)
            equal &= torch.equal(both[0][seed], loss) and torch.equal(both[1][seed], errors)
        if not equal:
            return None
        seconds["together"].append(middle - begin)
        seconds["alone"].append(time.perf_counter() - middle)
    together.write_back()
    if not _same(random, get_state(runs[0].device)):  # drawn from in one order together, in another alone
        return None
    for one, other in zip(alone, copies, strict=True):
        if not _same(one.model.state_dict(), other.model.state_dict()):
            return None
        if not _same(one.optimizer.state_dict(), other.optimizer.state_dict()):
            return None
    return median(seconds["together"][1:]), median(seconds["alone"][1:])


def _copy(run: Training) -> Training:
    """The training with a network and an optimiser of its own."""
    twin = copy.copy(run)
    twin.model, twin.optimizer = copy.deepcopy((run.model, run.optimizer))
    return twin


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
