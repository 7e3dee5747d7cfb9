"""Tables of numbers whose columns have very different ranges, as images ``[n, columns, 1, 1]``, and networks for them.

Each function returns what ``package.module:function`` stands for as a dataset, each class is such a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from groupnorm.lab.data.data_paths import DATA_DIR_VARIABLE, default_data_dir
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.source import permutation
from groupnorm.lab.models.small_resnet import NormLayer

Table = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images, their labels, validation images, their labels."""

_TRAINING_PART = 0.7
_HIDDEN = 64


def breast_cancer() -> Table:
    """30 measurements of 569 tumours, from 0.001 to 4,254; benign or malignant (Wolberg et al. 1995)."""
    from sklearn.datasets import load_breast_cancer

    return _table(*load_breast_cancer(return_X_y=True))


def wine() -> Table:
    """13 measurements of 178 wines, from 0.1 to 1,680; three cultivars (Aeberhard & Forina 1991)."""
    from sklearn.datasets import load_wine

    return _table(*load_wine(return_X_y=True))


def california_housing() -> Table:
    """8 numbers of 20,640 districts, as median income, age of the houses, population; dearer than the median or not.

    Raises:
        DataError: the table is not in the data folder.
    """
    from sklearn.datasets import fetch_california_housing

    folder = default_data_dir()
    try:
        numbers, value = fetch_california_housing(data_home=folder, download_if_missing=False, return_X_y=True)
    except OSError:
        raise DataError(
            f"california housing is not in {folder}; expected what scikit-learn's fetch_california_housing(data_home="
            f"{str(folder)!r}) puts there: call it once, or set {DATA_DIR_VARIABLE}"
        ) from None
    return _table(numbers, value > _median(value))


def _median(value: Any) -> float:
    return float(torch.from_numpy(value).median())


def _table(numbers: Any, target: Any) -> Table:
    images = torch.from_numpy(numbers).float()[:, :, None, None]
    labels = torch.from_numpy(target).long()
    train, val = permutation(len(labels)).tensor_split([int(_TRAINING_PART * len(labels))])
    return images[train], labels[train], images[val], labels[val]


def breast_cancer_mlp(norm_layer: NormLayer) -> nn.Module:
    """For :func:`breast_cancer`."""
    return perceptron(norm_layer, 30, 2)


def wine_mlp(norm_layer: NormLayer) -> nn.Module:
    """For :func:`wine`."""
    return perceptron(norm_layer, 13, 3)


def california_housing_mlp(norm_layer: NormLayer) -> nn.Module:
    """For :func:`california_housing`."""
    return perceptron(norm_layer, 8, 2)


def perceptron(norm_layer: NormLayer, columns: int, classes: int) -> nn.Module:
    """Two hidden layers of 64; the norm is between the columns and the first, and nowhere else."""
    return nn.Sequential(
        norm_layer(columns, apply_act=False),
        nn.Flatten(),
        nn.Linear(columns, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, classes),
    )
