"""Training on batches of few classes, and on workers that hold few classes (Hsieh et al. 2020, arXiv:1910.00189)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from groupnorm.errors import ArgumentError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import Dataset
from groupnorm.lab.training.loop import Training


class FewClasses(Training):
    """The images that share statistics show ``classes`` of the classes, newly drawn each time (Ioffe 2017).

    The option ``classes`` is their number; None is the usual order. Else an epoch has as many images as ever, but draws
    them anew for each batch.

    Raises:
        ArgumentError: the data has fewer classes.
    """

    def order(self) -> Tensor:
        """Indices of images in the order of this epoch."""
        classes = self.cell.options["classes"]
        if classes is None:
            return super().order()
        if classes > self.dataset.num_classes:
            raise ArgumentError(
                f"classes={classes}; {self.dataset.name} has {self.dataset.num_classes}: expected at most so many, "
                f"or None"
            )
        size = self.cell.statistics_batch
        parts = self.steps_per_epoch * self.cell.batch_size // size
        return few_classes(self.dataset.train_labels, classes, size, parts, _generator(self))


class Workers(Training):
    """Synchronous SGD on workers that hold a part of the images each; the parts of a step are the workers' images.

    Options: ``workers``; ``skewed``, whether each holds classes of its own, or random images. Each worker has its own
    batch statistics, and the gradients are averaged. They follow one another in a new order at each step, since the one
    network that stands for all has its running statistics moved by each in turn, by the last a little more.
    """

    shuffled = True

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        workers = cell.options["workers"]
        if cell.statistics_batch * workers != cell.batch_size:
            raise ArgumentError(
                f"batch size {cell.batch_size} with a normalization batch of {cell.statistics_batch} is not "
                f"{workers} workers; expected a normalization batch of batch size / workers"
            )
        super().__init__(cell, dataset)
        generator = Generator().manual_seed(cell.seed)
        self.shards = split_images(dataset.train_labels, workers, cell.options["skewed"], generator)

    def order(self) -> Tensor:
        """Indices of images: at each step a batch of every worker."""
        generator = _generator(self)
        steps, size = self.steps_per_epoch, self.cell.statistics_batch
        own = [endless(shard, steps * size, generator).split(size) for shard in self.shards]
        order: list[Tensor] = []
        for step in range(steps):
            turns = torch.randperm(len(own), generator=generator) if self.shuffled else torch.arange(len(own))
            order += [own[worker][step] for worker in turns.tolist()]
        return torch.cat(order)


class FederatedAveraging(Workers):
    """Workers train alone, and their networks are averaged (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).

    Each takes ``local_steps`` steps from the common network, then weights and running statistics are averaged.
    Momentum starts anew with each round. Rounds end with the epoch, so that between epochs there is one network.
    """

    shuffled = False

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        super().__init__(cell, dataset)
        self.local_steps = cell.options["local_steps"]
        if self.steps_per_epoch % self.local_steps:
            raise ArgumentError(
                f"local_steps={self.local_steps} does not divide the {self.steps_per_epoch} steps of an epoch; "
                f"expected a divisor, so that an epoch ends with an average"
            )
        self.workers: list[tuple[nn.Module, torch.optim.Optimizer]] = []
        self.steps_of_round = 0

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One local step of every worker; the last of a round averages them."""
        if self.steps_of_round == 0:
            self.workers = [self._worker() for _ in self.shards]
        size, rate = self.cell.statistics_batch, self.optimizer.param_groups[0]["lr"]
        loss, errors = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for (model, optimizer), part, target in zip(self.workers, images.split(size), labels.split(size), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            with self.autocast():
                logits = model(part)
            own_loss = F.cross_entropy(logits.float(), target)
            own_loss.backward()
            optimizer.step()
            loss += own_loss.detach() / len(self.workers)
            errors += (logits.detach().argmax(1) != target).sum()
        self.steps_of_round += 1
        if self.steps_of_round == self.local_steps:
            average([model for model, _ in self.workers], self.model)
            self.steps_of_round = 0
        return loss, errors

    def _worker(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(self.model).train()
        momentum, decay = self.cell.momentum, self.cell.weight_decay
        return model, torch.optim.SGD(model.parameters(), lr=0.0, momentum=momentum, weight_decay=decay, fused=True)


def few_classes(labels: Tensor, classes: int, size: int, parts: int, generator: Generator) -> Tensor:
    """Indices ``[parts * size]``: in each part of ``size``, equally many images of ``classes`` classes drawn anew.

    A class with too few images repeats them. Where ``classes`` does not divide ``size``, some get one image more.

    Args:
        labels: ``[n]``, of the images.
        classes: number of classes of a part.
        size: images of a part.
        parts: number of parts.
        generator: of all draws.
    """
    members = [torch.where(labels == label)[0] for label in labels.unique()]
    shares = [len(part) for part in torch.arange(size).tensor_split(classes)]
    order: list[Tensor] = []
    for _ in range(parts):
        drawn = torch.randperm(len(members), generator=generator)[:classes]
        images = [endless(members[i], n, generator) for i, n in zip(drawn.tolist(), shares, strict=True)]
        order.append(torch.cat(images)[torch.randperm(size, generator=generator)])
    return torch.cat(order)


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


def endless(items: Tensor, count: int, generator: Generator) -> Tensor:
    """``count`` of the items in random order, each before any comes again."""
    rounds = -(-count // len(items))
    return torch.cat([items[torch.randperm(len(items), generator=generator)] for _ in range(rounds)])[:count]


def average(models: Sequence[nn.Module], into: nn.Module) -> None:
    """Give a network the mean of the parameters and floating-point buffers of others; counts come from the first."""
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, target in into.state_dict().items():
            values = [state[name] for state in states]
            target.copy_(torch.stack(values).mean(0) if target.is_floating_point() else values[0])


def _generator(run: Training) -> Generator:
    """Random numbers of this epoch that depend on the seed and the epoch alone."""
    return Generator().manual_seed(run.cell.seed * 1_000_003 + run.epochs_done)
