"""Inputs whose ranges differ by orders of magnitude, as income and age do: raw, scaled, standardised, normalised.

``groupnorm run inputs --scale small``

- smoke: seconds; one epoch, too short to tell anything.
- small: 2 minutes on two cores; two tables that come with scikit-learn, measurements of tumours and of wines: at its
  best learning rate the error is 6.2 and 27.0 on raw columns, 2.5 and 3.7 on columns of 0 to 1, 2.7 and 4.1
  standardised, 2.0 and 4.4 raw with BN; the best rate is about 600 times smaller on raw columns.
- full: an hour on two cores; California housing: income, age of the houses, population, ... of 20,640
  districts: no published number.

A perceptron with two hidden layers learns from the columns as they are, brought to 0..1, or standardised, each at
learning rates over six orders of magnitude; and from raw columns with a batch norm or layer norm before its first
layer.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from groupnorm.errors import UnknownNameError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import Dataset
from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale
from groupnorm.lab.experiments.framework.plots import by, over
from groupnorm.lab.regimes.images import ImageTraining

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
WAYS = {"raw": ("none", "bn", "ln"), "minmax": ("none",), "standard": ("none",)}
"""The norms before the first layer, by what is done to the columns."""

NAMES = {("raw", "none"): "raw", ("raw", "bn"): "raw, BN", ("raw", "ln"): "raw, LN",
         ("minmax", "none"): "0 to 1", ("standard", "none"): "standardised"}  # fmt: skip


class Scaled(ImageTraining):
    """Shows the network inputs as the option ``scaling`` says: "raw", "minmax" (0 to 1) or "standard".

    Minimum, maximum, mean and standard deviation are of the training images, for each channel. ``"condition"`` is the
    condition number of the covariance of the network's inputs: its largest eigenvalue over its smallest.
    """

    stackable = True
    parallel = True

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        images = dataset.train_images[torch.arange(len(dataset.train_labels))].float()
        low, high = images.amin((0, 2, 3))[:, None, None], images.amax((0, 2, 3))[:, None, None]
        scalings = {
            "raw": (torch.zeros_like(low), torch.ones_like(low)),
            "minmax": (low, torch.where(high > low, high - low, 1.0)),
            "standard": (dataset.mean, dataset.std),
        }
        if cell.options["scaling"] not in scalings:
            raise UnknownNameError("scaling", cell.options["scaling"], scalings)
        self.shift, self.scale = scalings[cell.options["scaling"]]
        super().__init__(cell, dataset)

    def inputs(self, images: Tensor) -> Tensor:
        """Stored ``images`` less the shift, divided by the scale."""
        return (images.float() - self.shift.to(images.device)) / self.scale.to(images.device)

    def measure(self) -> dict[str, float]:
        """Also the condition number."""
        found = super().measure()
        if self.finished:
            images = self.dataset.train_images[torch.arange(len(self.dataset.train_labels))]
            found["condition"] = condition_number(self.inputs(images).flatten(1))
        return found


def condition_number(rows: Tensor) -> float:
    """The largest eigenvalue of the covariance of ``rows`` ``[n, d]`` over its smallest, which must not be 0."""
    eigenvalues = torch.linalg.svdvals(rows.double() - rows.double().mean(0)) ** 2
    return float(eigenvalues[0] / eigenvalues[-1])


def draw(evidence: Evidence) -> Figure:
    """Training error over the learning rate, a panel for each table."""
    table = evidence.table.assign(way=_ways(evidence.table), decade=_powers(evidence.table))
    return over(
        evidence,
        "decade",
        by(table, "arm"),
        title="Training on columns of very different ranges",
        x_name="learning rate (power of ten)",
        y="train_error",
        y_name="training error (%)",
        lines="way",
        log_x=False,
    )


def _ways(table: pd.DataFrame) -> list[str]:
    return [NAMES[scaling, norm] for scaling, norm in zip(table["scaling"], table["norm"], strict=True)]


def _powers(table: pd.DataFrame) -> list[float]:
    return [math.log10(rate) for rate in table["learning_rate"]]


def _at_best(evidence: Evidence, measure: str, scaling: str, norm: str = "none") -> pd.Series[float]:
    """A measure at the learning rate with the lowest loss in training, by seed, averaged over the tables."""
    table = evidence.table
    if "loss" not in table:
        return pd.Series(dtype=float)
    cells = table[(table["scaling"] == scaling) & (table["norm"] == norm)].dropna(subset=["loss"])  # diverged: none
    cells = cells.assign(decade=_powers(cells))
    best = cells.loc[cells.groupby(["arm", "seed"])["loss"].idxmin()]
    found: pd.Series[float] = best.groupby("seed")[measure].mean()
    return found


def _decades(evidence: Evidence) -> Any:
    """By how many powers of ten the best learning rate of standardised inputs is above that of raw ones, by seed."""
    standard, raw = (_at_best(evidence, "decade", scaling) for scaling in ("standard", "raw"))
    return standard - raw


def _arm(name: str, rates: tuple[float, ...] = RATES, **changes: Any) -> list[dict[str, Any]]:
    tables = "groupnorm.lab.experiments.tables:"
    return [
        {
            "dataset": tables + name,
            "model": f"{tables}{name}_mlp",
            "norms": norms,
            "batch_sizes": (32,),
            "learning_rate": rate,
            "weight_decay": 0.0,
            "seeds": 5,
            "epochs": 30,
            "task": "groupnorm.lab.experiments.inputs:Scaled",
            "options": {"scaling": scaling},
        }
        | changes
        for scaling, norms in WAYS.items()
        for rate in rates
    ]


EXPERIMENT = Experiment(
    name="inputs",
    head=str(__doc__),
    title="Inputs of very different ranges",
    question="What does it cost to train on columns of very different ranges as they are, and what makes up for it?",
    source="LeCun, Bottou, Orr & Müller 1998, Efficient BackProp",
    smoke=Scale(
        arms={"wines": _arm("wine", rates=(1e-2,), seeds=2, epochs=1)},
    ),
    small=Scale(
        arms={"tumours": _arm("breast_cancer"), "wines": _arm("wine")},
    ),
    full=Scale(
        arms={"districts": _arm("california_housing", epochs=100)},
    ),
    figure=draw,
    claims=(
        Claim(
            id="inputs-standardised",
            statement="Training converges faster on standardised inputs than on raw ones of different ranges.",
            source="LeCun et al. 1998, Efficient BackProp",
            published="-",
            refuted="each at its best learning rate, raw inputs have no higher loss in training after as many epochs",
            effects=(
                Effect(
                    "training loss, raw minus standardised (nats)",
                    lambda e: _at_best(e, "loss", "raw") - _at_best(e, "loss", "standard"),
                    above=0,
                ),
            ),
        ),
        Claim(
            id="inputs-rate",
            statement="Raw inputs of different ranges force a lower learning rate.",
            source="LeCun et al. 1998, Efficient BackProp",
            published="-",
            refuted="the best learning rate of raw inputs is no lower than that of standardised ones",
            effects=(Effect("best learning rate, standardised over raw (powers of ten)", _decades, above=0),),
        ),
        Claim(
            id="inputs-bn",
            statement="A batch norm at the input makes up for raw inputs.",
            source="after Ioffe & Szegedy 2015, who normalise the inputs of every layer",
            published="-",
            refuted="its training error is 2 points or more above that with standardised inputs, each at its best rate",
            effects=(
                Effect(
                    "training error, raw with BN minus standardised (points)",
                    lambda e: _at_best(e, "train_error", "raw", "bn") - _at_best(e, "train_error", "standard"),
                    below=2,
                ),
            ),
        ),
    ),
)
