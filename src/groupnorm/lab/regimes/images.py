"""A training on images, for regimes that look at them."""

from __future__ import annotations

from groupnorm.lab.data import Dataset
from groupnorm.lab.training.loop import Training


class ImageTraining(Training):
    """A training whose data are labelled images."""

    stackable = True
    parallel = True
    options = frozenset()
    tasks = frozenset({"classification"})
    dataset: Dataset
