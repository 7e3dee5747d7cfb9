"""The norms that were made for batches of a few images, beside batch norm and group norm.

``groupnorm run micro-batch --scale small``

- smoke: seconds; 32 images, too few to tell anything.
- small: 18 minutes on two cores; the digits at 8x8, whose last maps are 1x1, so that BN, Ghost BN, BRN, MABN and CBN
  are undefined at 1 image: at 2 images MABN 2.9, GBGN 3.0, GN 3.1, WS+GN 3.3, BGN 3.3, ..., BRN 6.8, CBN 7.8, BN 53.6,
  Ghost BN 63.2; at 1 image EvoNorm-S0 3.5, WS+GN 3.6, FRN 4.0, GN 4.1, BCN 5.3.
- full: months of eight GPUs; ResNet-50 on ImageNet, 8 workers of 32, 4, 2 and 1 images, 100 epochs: top-1 error at 2
  images: MABN 23.7, BGN 23.9; at 1 image: WS+GN 23.7; each with its paper's recipe.

The recipe is the same for all norms. Every paper has its own; what a norm owes to it does not show here.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from groupnorm.lab.analysis.labels import label
from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale, narrow
from groupnorm.lab.experiments.framework.plots import by, ranked
from groupnorm.lab.experiments.imagenet import IMAGENET

SIZES = (32, 4, 2, 1)
NORMS = ("bn", "gn", "ws+gn", "bcn-micro", "gbgn", "bgn", "mabn", "cbn", "brn", "frn", "evonorm-s0", "ghost")
DIGITS: dict[str, Any] = {"dataset": "digits", "model": "resnet-tiny", "norms": narrow(*NORMS)}


def draw(evidence: Evidence) -> Figure:
    """The norms, best first, a panel for each number of images."""
    return ranked(
        evidence,
        by(evidence.table, "normalization_batch", lambda size: f"{size} image{'s' * (size > 1)}"),
        title="Error of the norms for small batches",
    )


def _error(evidence: Evidence, norm: str, size: int) -> pd.Series[float]:
    return evidence.at(family=norm, normalization_batch=size)


def _gain(norm: str, size: int, over: str, over_size: int | None = None, *, above: float) -> Effect:
    """By how much a norm's error at ``size`` images is lower than another's, in points."""
    other = over_size or size
    return Effect(
        f"{label(over)}'s error at {other} minus {label(norm)}'s at {size} (points)",
        lambda evidence: _error(evidence, over, other) - _error(evidence, norm, size),
        above=above,
    )


EXPERIMENT = Experiment(
    name="micro-batch",
    head=str(__doc__),
    title="Norms for small batches",
    question="Which norm has the lowest error when a batch is 4, 2 or 1 images?",
    source="Qiao et al. 2019; Summers & Dinneen 2020; Zhou et al. 2020; Yan et al. 2020; Yao et al. 2021; "
    "Singh & Krishnan 2020; Liu et al. 2020; Hoffer et al. 2017",
    smoke=Scale(
        arms={
            "sgd": [DIGITS | {"batch_sizes": (32, 2, 1), "seeds": 2, "epochs": 1, "limit_train": 32, "limit_val": 32}]
        },
    ),
    small=Scale(
        arms={"sgd": [DIGITS | {"batch_sizes": SIZES, "seeds": 3, "epochs": 3}]},
    ),
    full=Scale(
        arms={
            "sgd": [IMAGENET | {"norms": NORMS, "batch_sizes": (8 * n,), "normalization_batches": (n,)} for n in SIZES]
        },
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="micro-ws-gn",
            statement="With weight standardisation GN at one image beats GN without it, and BN at a large batch.",
            source="Qiao et al. 2019 (Weight Standardization), repository",
            published="ResNet-50, WS+GN at 1 image a GPU: 23.72%; 'able to match or outperform' BN at large batches",
            refuted="WS+GN at 1 image has no lower error than GN there or than BN at 32",
            effects=(
                _gain("ws+gn", 1, "gn", above=0),
                _gain("ws+gn", 1, "bn", 32, above=0),
            ),
        ),
        Claim(
            id="micro-mabn",
            statement="MABN at 2 images is as good as BN at 32, and better than batch renormalisation.",
            source="Yan et al. 2020 (MABN)",
            published="ResNet-50, top-1 accuracy: BN at 32 76.59; at 2 MABN 76.33, BRN 69.71, BN 64.78",
            refuted="MABN at 2 is a point or more worse than BN at 32, or no better than BRN at 2",
            effects=(
                _gain("mabn", 2, "bn", 32, above=-1),
                _gain("mabn", 2, "brn", above=0),
            ),
        ),
        Claim(
            id="micro-bgn",
            statement="BGN at 2 images is far better than BN.",
            source="Zhou et al. 2020 (Batch Group Normalization), abstract",
            published="ResNet-50, top-1 accuracy at 2 images: BN 66.512, BGN 76.096: 9.6 points",
            refuted="BGN is at most 5 points better than BN",
            effects=(_gain("bgn", 2, "bn", above=5),),
        ),
        Claim(
            id="micro-cbn",
            statement="CBN at a small batch is better than BN, and as good as GN.",
            source="Yao et al. 2021 (Cross-Iteration Batch Normalization), abstract; COCO tables",
            published="Faster R-CNN, box AP: fixed BN 36.8, GN 37.7, CBN 37.6",
            refuted="CBN at 4 images has no lower error than BN, or is a point or more worse than GN",
            effects=(
                _gain("cbn", 4, "bn", above=0),
                _gain("cbn", 4, "gn", above=-1),
            ),
        ),
        Claim(
            id="micro-gbgn",
            statement="GN over two images together (Batch/Group Normalization) is at least as good as GN at 2 images.",
            source="Summers & Dinneen 2020 (Four Things), abstract",
            published="-",
            refuted="it is half a point or more worse",
            effects=(_gain("gbgn", 2, "gn", above=-0.5),),
        ),
        Claim(
            id="micro-bcn",
            statement="BCN at a micro-batch is better than GN.",
            source="Qiao et al. 2019 (Batch-Channel Normalization), arXiv:1911.09738",
            published="VOC, mean IoU, with weight standardisation: GN 77.20, BCN 78.10",
            refuted="BCN's error at 1 image is not below GN's",
            effects=(_gain("bcn-micro", 1, "gn", above=0),),
            note="Their BCN comes with weight standardisation, which neither of the two has here.",
        ),
        Claim(
            id="micro-frn",
            statement="FRN is better than BN at a large batch, and than GN at a small one.",
            source="Singh & Krishnan 2020 (Filter Response Normalization), abstract",
            published="ImageNet, top-1: 0.7 to 1.0 points better than BN, more than 1 point better than GN",
            refuted="FRN's error is not below BN's at 32 images, or not below GN's at 2",
            effects=(
                _gain("frn", 32, "bn", above=0),
                _gain("frn", 2, "gn", above=0),
            ),
            note="It learns slowly at first: the few epochs of the small scale are short for it.",
        ),
        Claim(
            id="micro-evonorm-s0",
            statement="EvoNorm-S0 at a small batch is far better than BN, and better than GN.",
            source="Liu et al. 2020 (Evolving Normalization-Activation Layers), author response",
            published="ResNet-50, small batches: 7.8 points better than BN; 'clear gains' over GN",
            refuted="at 2 images it is at most 5 points better than BN, or no better than GN",
            effects=(
                _gain("evonorm-s0", 2, "bn", above=5),
                _gain("evonorm-s0", 2, "gn", above=0),
            ),
            note="It learns slowly at first: the few epochs of the small scale are short for it.",
        ),
        Claim(
            id="micro-ghost",
            statement="Ghost BN of 16 images at a time regularises: at a batch of 32 it is better than BN.",
            source="Summers & Dinneen 2020 (Four Things), abstract",
            published="-",
            refuted="Ghost BN's error at 32 images is not below BN's",
            effects=(_gain("ghost", 32, "bn", above=0),),
            note="In batches of 16 images or fewer it is BN. Few epochs leave nothing to regularise.",
        ),
    ),
)
