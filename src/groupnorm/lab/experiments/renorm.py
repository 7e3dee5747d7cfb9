"""Batch renorm between batch norm and group norm, at batches of 4 and 2 (section 4.1).

``groupnorm run renorm --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 8 minutes on two cores; the digits at 8x8, whose last maps are 1x1, so that a batch norm there has one value of
  each image: error at 4 images BRN 1.8, BN 2.1, GN 2.2; at 2 images GN 2.2, BRN 7.4 (5.3 with Ioffe's limits), BN 60.7.
- full: weeks of eight GPUs; ResNet-50 on ImageNet, 8 workers, 100 epochs: error at 4 images a worker: BN 27.3, BRN
  26.3, GN 24.2; at 2: BN 34.7, GN 24.1.

Two forms of batch renorm: "brn" has the limits that Wu & He use, and "brn-ioffe" those of its author. Both grow from
batch norm's along the schedule of the layer.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale
from groupnorm.lab.experiments.framework.plots import by, ranked
from groupnorm.lab.experiments.imagenet import IMAGENET
from groupnorm.lab.regimes.images import ImageTraining
from groupnorm.nn import BatchRenorm

PAPER = "Wu & He 2018, section 4.1"
SIZES = (4, 2)
DIGITS: dict[str, Any] = {"dataset": "digits", "model": "resnet-tiny", "seeds": 5}
FEW = {"seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 32}


class RenormTraining(ImageTraining):
    """Trains with other limits of batch renorm.

    Options: ``r_max`` and ``d_max``, as of :class:`groupnorm.nn.BatchRenorm`.
    """

    stackable = True
    parallel = True

    def build(self) -> nn.Module:
        """The network of the cell, with the limits of the options."""
        network = super().build()
        for module in network.modules():
            if isinstance(module, BatchRenorm):
                module.r_max, module.d_max = self.cell.options["r_max"], self.cell.options["d_max"]
        return network


WU_AND_HE: dict[str, Any] = {
    "task": f"{__name__}:{RenormTraining.__name__}",
    "options": {"r_max": 1.5, "d_max": 0.5},
}


def draw(evidence: Evidence) -> Figure:
    """The error of each norm, a panel for each batch size."""
    table = evidence.table
    table = table.assign(form=table["arm"].replace({"brn": "BRN (Wu & He)", "brn-ioffe": "BRN (Ioffe)"}))
    panels = by(table, "normalization_batch", lambda size: f"{size} images share statistics")
    return ranked(evidence, panels, title="Batch renorm", lines="form")


def _arms(shared: list[dict[str, Any]], group_norm: str) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {
        "bn": {"norms": ("bn",)},
        "brn": {"norms": ("brn",)} | WU_AND_HE,
        "brn-ioffe": {"norms": ("brn",)},
    }
    parts["gn"] = {"norms": (group_norm,)}
    return {arm: [options | part for options in shared] for arm, part in parts.items()}


def _gap(evidence: Evidence, norm: str, other: str, size: int = 4) -> pd.Series[float]:
    """How far the error of a norm lies above that of another."""
    first, second = (evidence.at(arm=arm, normalization_batch=size) for arm in (norm, other))
    return first - second


EXPERIMENT = Experiment(
    name="renorm",
    head=str(__doc__),
    title="Batch renorm",
    question="Does batch renorm do what group norm does at small batches?",
    source=PAPER,
    smoke=Scale(arms=_arms([DIGITS | FEW | {"batch_sizes": (4,)}], "gn:8")),
    small=Scale(
        arms=_arms([DIGITS | {"batch_sizes": SIZES}], "gn:8"),
    ),
    full=Scale(
        arms=_arms([IMAGENET | {"batch_sizes": (8 * n,), "normalization_batches": (n,)} for n in SIZES], "gn"),
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="brn-before-bn",
            statement="At 4 images BRN has a lower error than BN.",
            source=PAPER,
            published="BRN 26.3%, BN 27.3%: 1.0 point",
            refuted="BRN's error is that of BN or higher",
            effects=(Effect("BN's error minus BRN's (points)", lambda e: _gap(e, "bn", "brn"), above=0),),
            note="On the digits BN does not suffer at 4 images yet, which leaves BRN nothing to mend.",
        ),
        Claim(
            id="brn-behind-gn",
            statement="At 4 images BRN has a higher error than GN.",
            source=PAPER,
            published="BRN 26.3%, GN 24.2%: 2.1 points",
            refuted="BRN's error is that of GN or lower",
            effects=(Effect("BRN's error minus GN's (points)", lambda e: _gap(e, "brn", "gn"), above=0),),
            note="On the digits BN itself is as good as GN at 4 images.",
        ),
        Claim(
            id="brn-at-two",
            statement="At 2 images BRN has a lower error than BN.",
            source="Yan et al. 2020 (MABN, arXiv:2001.06838), ResNet-50 on ImageNet",
            published="accuracy BRN 69.7%, BN 64.8%: 4.9 points",
            refuted="BRN's error is that of BN or higher, with the limits of its author",
            effects=(Effect("BN's error minus BRN's (points)", lambda e: _gap(e, "bn", "brn-ioffe", 2), above=0),),
        ),
        Claim(
            id="brn-between",
            statement="Where BN fails, at 2 images, BRN lies between BN and GN.",
            source=f"after {PAPER}, who say it of 4 images",
            published="-",
            refuted="BRN's error is that of BN or higher, or that of GN or lower",
            effects=(
                Effect("BN's error minus BRN's (points)", lambda e: _gap(e, "bn", "brn", 2), above=0),
                Effect("BRN's error minus GN's (points)", lambda e: _gap(e, "brn", "gn", 2), above=0),
            ),
        ),
    ),
)
