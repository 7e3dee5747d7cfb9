"""Chest X-rays at small batches: a blog has group norm raise the accuracy from 82% to 91%.

``groupnorm run xray --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 6 minutes on two cores; 1,200 images of PneumoniaMNIST with resnet-tiny: error at 32/8/2 images BN
  18.4/18.2/19.3, GN 21.2/20.3/21.1, LN 23.4/20.1/20.6.
- full: a day of a GPU; all 4,708 images of PneumoniaMNIST with ResNet-18: no published number: the blog says 82% with
  BN and 91% with GN, on data of its own.

Children's chest X-rays of 28x28, with pneumonia or without. The blog names neither data nor network, so this asks
whether anything of the kind happens at all. Besides the error there is the area under the ROC curve, which classes of
unequal size do not flatter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata

from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale
from groupnorm.lab.experiments.framework.plots import over
from groupnorm.lab.regimes.images import ImageTraining

BLOG = "a blog's unsourced claim"
SIZES = (32, 8, 2)
_SCORED = 128  # images scored at a time


class RocTraining(ImageTraining):
    """Also measures ``auc``, the area under the ROC curve of the validation images; for two classes."""

    stackable = True
    parallel = True

    def measure(self) -> dict[str, float]:
        """Also the area under the ROC curve."""
        return super().measure() | {"auc": self._auc()}

    @torch.inference_mode()
    def _auc(self) -> float:
        self.model.eval()
        scores = []
        for part in self.dataset.val_images.split(_SCORED):
            with self.autocast():
                logits = self.model(self.inputs(part.to(self.device)))
            scores.append((logits[:, 1] - logits[:, 0]).float().cpu())
        return area_under_curve(torch.cat(scores).numpy(), self.dataset.val_labels.numpy())


def area_under_curve(scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """The chance that a positive image has a higher score than a negative one, ties counted half.

    Args:
        scores: ``[n]``, higher for what looks positive.
        labels: ``[n]``, 1 for positive, 0 for negative.

    Returns:
        0 to 1; NaN where one class is missing.

    Source: Hanley & McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    positive = labels == 1
    pairs = int(positive.sum()) * int((~positive).sum())
    if not pairs:
        return float("nan")
    least = positive.sum() * (positive.sum() + 1) / 2  # the sum of the positives' ranks if all the others came later
    return float((rankdata(scores)[positive].sum() - least) / pairs)


RAYS: dict[str, Any] = {
    "dataset": "pneumoniamnist",
    "model": "resnet-tiny",
    "batch_sizes": SIZES,
    "limit_train": 1200,
    "epochs": 4,
    "seeds": 5,
    "task": f"{__name__}:{RocTraining.__name__}",
}
FEW = {"seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 64, "batch_sizes": (32, 4)}


def draw(evidence: Evidence) -> Figure:
    """The error, and what the area under the curve lacks, over the batch size."""
    table = evidence.table
    panels = {"images in the wrong class": table.assign(shown=table["error"])}
    if "auc" in table:
        panels["pairs in the wrong order (1 - AUC)"] = table.assign(shown=100 - 100 * table["auc"])
    return over(
        evidence,
        "normalization_batch",
        panels,
        title="Chest X-rays",
        x_name="batch size",
        y="shown",
        y_name="validation (%)",
        falling=True,
    )


def _gain(evidence: Evidence, measure: str, size: int = 2) -> pd.Series[float]:
    """How far GN's measure lies above BN's."""
    gn, bn = (evidence.at(measure, family=name, normalization_batch=size) for name in ("gn", "bn"))
    return gn - bn


EXPERIMENT = Experiment(
    name="xray",
    head=str(__doc__),
    title="Chest X-rays",
    question="Does group norm raise the accuracy on chest X-rays at small batches?",
    source=BLOG,
    smoke=Scale(
        arms={"rays": [RAYS | FEW | {"norms": ("bn", "gn:8", "ln")}]},
    ),
    small=Scale(
        arms={"rays": [RAYS | {"norms": ("bn", "gn:8", "ln")}]},
    ),
    full=Scale(
        arms={"rays": [RAYS | {"norms": ("bn", "gn", "ln"), "model": "resnet18", "limit_train": None, "epochs": 100}]},
    ),
    figure=draw,
    claims=(
        Claim(
            id="gn-xray",
            statement="On chest X-rays at a small batch GN's accuracy is 9 points above BN's.",
            source=BLOG,
            published="82% with BN, 91% with GN: +9 points",
            refuted="GN's accuracy at 2 images is at most 4.5 points, half of the claim, above BN's",
            effects=(Effect("GN's accuracy minus BN's at 2 images (points)", lambda e: -_gain(e, "error"), above=4.5),),
            note="The last maps of resnet-tiny are 4x4 here: BN has 32 values of each channel at 2 images.",
        ),
    ),
)
