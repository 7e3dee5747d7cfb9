"""Batches whose images show few classes (Ioffe 2017, arXiv:1702.03275; Hsieh et al. 2020, arXiv:1910.00189)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from groupnorm.errors import ArgumentError
from groupnorm.lab.regimes.images import ImageTraining
from groupnorm.lab.training.loop import Training


class FewClasses(ImageTraining):
    """The images that share statistics show ``classes`` of the classes, newly drawn each time (Ioffe 2017).

    The option ``classes`` is their number, 2 unless given; None is the usual order. Else an epoch has as many images as
    ever, but draws them anew for each batch.

    Raises:
        ArgumentError: the data has fewer classes.
    """

    stackable = True
    parallel = True
    options = frozenset({"classes"})

    def order(self) -> Tensor:
        """Indices of images in the order of this epoch."""
        classes = self.cell.options.get("classes", 2)
        if classes is None:
            return super().order()
        if classes > self.dataset.num_classes:
            raise ArgumentError(
                f"classes={classes}; {self.dataset.name} has {self.dataset.num_classes}: expected at most so many, "
                f"or None"
            )
        size = self.cell.statistics_batch
        parts = self.steps_per_epoch * self.cell.batch_size // size
        return few_classes(self.dataset.train_labels, classes, size, parts, epoch_generator(self))


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
        images = [cycle(members[i], n, generator) for i, n in zip(drawn.tolist(), shares, strict=True)]
        order.append(torch.cat(images)[torch.randperm(size, generator=generator)])
    return torch.cat(order)


def cycle(items: Tensor, count: int, generator: Generator) -> Tensor:
    """``count`` of the items in random order, each before any comes again."""
    rounds = -(-count // len(items))
    return torch.cat([items[torch.randperm(len(items), generator=generator)] for _ in range(rounds)])[:count]


def epoch_generator(run: Training) -> Generator:
    """Random numbers of this epoch that depend on the seed and the epoch alone."""
    return Generator().manual_seed(run.epoch_seed)
