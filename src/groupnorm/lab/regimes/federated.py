"""Training on workers that hold a part of the images each (Hsieh et al. 2020, arXiv:1910.00189)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from groupnorm.errors import ArgumentError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import Dataset
from groupnorm.lab.regimes.few_classes import cycle, epoch_generator
from groupnorm.lab.regimes.images import ImageTraining
from groupnorm.lab.training import optimizers


class Workers(ImageTraining):
    """Synchronous SGD on workers that hold a part of the images each; the parts of a step are the workers' images.

    Options: ``workers``, as many as the normalization batch makes unless given; ``skewed``, whether each holds classes
    of its own (unless given), or random images. Each worker has its own batch statistics, and the gradients are
    averaged. They follow one another in a new order at each step, since the one network that stands for all has its
    running statistics moved by each in turn, by the last a little more.
    """

    stackable = True
    parallel = True
    options = frozenset({"workers", "skewed"})
    shuffled = True

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        workers = cell.options.get("workers", cell.batch_size // cell.statistics_batch)
        if cell.statistics_batch * workers != cell.batch_size:
            raise ArgumentError(
                f"batch size {cell.batch_size} with a normalization batch of {cell.statistics_batch} is not "
                f"{workers} workers; expected a normalization batch of batch size / workers"
            )
        super().__init__(cell, dataset)
        generator = Generator().manual_seed(cell.seed)
        self.shards = split_images(dataset.train_labels, workers, cell.options.get("skewed", True), generator)

    def order(self) -> Tensor:
        """Indices of images: at each step a batch of every worker."""
        generator = epoch_generator(self)
        steps, size = self.steps_per_epoch, self.cell.statistics_batch
        own = [cycle(shard, steps * size, generator).split(size) for shard in self.shards]
        order: list[Tensor] = []
        for step in range(steps):
            turns = torch.randperm(len(own), generator=generator) if self.shuffled else torch.arange(len(own))
            order += [own[worker][step] for worker in turns.tolist()]
        return torch.cat(order)


class Federated(Workers):
    """Workers train alone, and their networks are averaged (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).

    Each takes ``local_steps`` steps from the common network, those of an epoch unless given, then weights and running
    statistics are averaged.
    Momentum starts anew with each round. Rounds end with the epoch, so that between epochs there is one network.
    """

    options = Workers.options | {"local_steps"}
    shuffled = False

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        super().__init__(cell, dataset)
        self.local_steps = cell.options.get("local_steps", self.steps_per_epoch)
        if self.steps_per_epoch % self.local_steps:
            raise ArgumentError(
                f"local_steps={self.local_steps} does not divide the {self.steps_per_epoch} steps of an epoch; "
                f"expected a divisor, so that an epoch ends with an average"
            )
        self.workers: list[tuple[nn.Module, torch.optim.Optimizer]] = []
        self.steps_of_round = 0

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One local step of every worker; the last of a round averages them."""
        if self.steps_of_round == 0:
            self.workers = [self._worker() for _ in self.shards]
        size, rate = self.cell.statistics_batch, self.optimizer.param_groups[0]["lr"]
        loss, tally = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for (model, optimizer), part, target in zip(self.workers, inputs.split(size), targets.split(size), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            with self.autocast():
                outputs = self.task.forward(model, part, target)
            own_loss = self.task.loss(outputs, target)
            own_loss.backward()
            optimizer.step()
            loss += own_loss.detach() / len(self.workers)
            tally += self.task.tally(outputs.detach(), target)
        self.steps_of_round += 1
        if self.steps_of_round == self.local_steps:
            average([model for model, _ in self.workers], self.model)
            self.steps_of_round = 0
        return loss, tally

    def _worker(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(self.model).train()
        return model, optimizers.find(self.cell.optimizer)(model.parameters(), self.cell)


def split_images(labels: Tensor, workers: int, skewed: bool, generator: Generator) -> list[Tensor]:
    """Indices of the images that each worker holds: equal random parts, or equally many classes drawn at random.

    Raises:
        ArgumentError: there are fewer classes than workers.
    """
    if not skewed:
        return list(torch.randperm(len(labels), generator=generator).tensor_split(workers))
    classes = labels.unique()
    if len(classes) < workers:
        raise ArgumentError(f"{workers} workers for {len(classes)} classes; expected at most one worker for each class")
    dealt = classes[torch.randperm(len(classes), generator=generator)].tensor_split(workers)
    return [torch.where(torch.isin(labels, own))[0] for own in dealt]


def average(models: Sequence[nn.Module], into: nn.Module) -> None:
    """Give a network the mean of the parameters and floating-point buffers of others; counts come from the first."""
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, target in into.state_dict().items():
            values = [state[name] for state in states]
            target.copy_(torch.stack(values).mean(0) if target.is_floating_point() else values[0])
