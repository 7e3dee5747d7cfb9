"""Norms that combine batch norm with group norm, or mix several: are they better than both?

``groupnorm run hybrids --scale small``

- smoke: seconds; 32 images, too few to tell anything.
- small: 10 minutes on two cores; the digits at 8x8: error at 32 images BN 1.8, BCN 2.1, SN 2.2, CN 2.2, GN 3.5; at 2
  images SN 1.9, GN 2.2, CN 18.1, BN 60.7, BCN 65.6.
- full: weeks of eight GPUs; ResNet-50 on ImageNet, 8 workers of 32 and 2 images, 100 epochs: top-1 accuracy at 32 and 2
  images a worker: BN 76.4 and 65.3, GN 75.9 and 75.9, SN 76.9 and 75.6.

Switchable norm learns a mixture of the statistics of instance, layer and batch norm; batch-channel norm is batch norm
and then group norm; continual norm is group norm and then batch norm.
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

REGULAR, SMALL = 32, 2
"""Images that share statistics."""
NORMS = ("bn", "gn", "sn", "cn", "bcn")
DIGITS: dict[str, Any] = {
    "dataset": "digits", "model": "resnet-tiny", "norms": narrow(*NORMS), "batch_sizes": (REGULAR, SMALL)
}  # fmt: skip


def draw(evidence: Evidence) -> Figure:
    """The norms, best first, at each batch size."""
    return ranked(
        evidence,
        by(evidence.table, "normalization_batch", lambda size: f"{size} images"),
        title="Norms that combine batch norm with group norm",
    )


def _error(evidence: Evidence, norm: str, size: int) -> pd.Series[float]:
    return evidence.at(family=norm, normalization_batch=size)


def _rise(evidence: Evidence, norm: str) -> pd.Series[float]:
    """How far the error rises from the regular batch to the small one, by seed."""
    return _error(evidence, norm, SMALL) - _error(evidence, norm, REGULAR)


def _gain(norm: str, over: str, size: int) -> Effect:
    """That a norm's error is lower than another's, in points."""
    return Effect(
        f"{label(over)}'s error minus {label(norm)}'s at {size} images (points)",
        lambda evidence: _error(evidence, over, size) - _error(evidence, norm, size),
        above=0,
    )


EXPERIMENT = Experiment(
    name="hybrids",
    head=str(__doc__),
    title="Norms that combine others",
    question="Are norms that combine batch norm and group norm better than both, and do they need a large batch?",
    source="Luo et al. 2019 (SN); Qiao et al. 2019 (BCN); Pham, Liu & Hoi 2022 (CN)",
    smoke=Scale(
        arms={"sgd": [DIGITS | {"seeds": 2, "epochs": 1, "limit_train": 32, "limit_val": 32}]},
    ),
    small=Scale(
        arms={"sgd": [DIGITS | {"seeds": 5, "epochs": 5}]},
    ),
    full=Scale(
        arms={
            "sgd": [
                IMAGENET | {"norms": NORMS, "batch_sizes": (8 * n,), "normalization_batches": (n,)}
                for n in (REGULAR, SMALL)
            ]
        },
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="hybrids-sn-best",
            statement="At a regular batch SN is better than both BN and GN.",
            source="Luo et al. 2019 (Switchable Normalization), table of ResNet-50 on ImageNet",
            published="top-1 accuracy at 32 images: BN 76.4, GN 75.9, SN 76.9",
            refuted="SN's error at 32 images is not below BN's, or not below GN's",
            effects=(_gain("sn", "bn", REGULAR), _gain("sn", "gn", REGULAR)),
        ),
        Claim(
            id="hybrids-sn-small-batch",
            statement="SN loses little from 32 images to 2.",
            source="Luo et al. 2019 (Switchable Normalization), table of ResNet-50 on ImageNet",
            published="top-1 accuracy of SN at 32 images 76.9, at 2 75.6: 1.3 points; of BN 11.1 points",
            refuted="SN's error at 2 images is 3 points or more above that at 32",
            effects=(Effect("SN's error at 2 minus at 32 (points)", lambda e: _rise(e, "sn"), below=3),),
            note="At small scale the last maps are 1x1, where an image alone has no variance in a channel.",
        ),
        Claim(
            id="hybrids-bcn-best",
            statement="At a regular batch BCN is better than both BN and GN.",
            source="Qiao et al. 2019 (Batch-Channel Normalization), arXiv:1911.09738",
            published="VOC, DeepLabv3 R101, mean IoU: BN 76.49, WS+GN 77.20, WS+BCN 78.10",
            refuted="BCN's error at 32 images is not below BN's, or not below GN's",
            effects=(_gain("bcn", "bn", REGULAR), _gain("bcn", "gn", REGULAR)),
            note="Their BCN comes with weight standardisation, which no norm has here.",
        ),
        Claim(
            id="hybrids-cn-small-batch",
            statement="Group norm before batch norm (CN) makes it depend less on the batch.",
            source="after Pham, Liu & Hoi 2022 (Continual Normalization), abstract",
            published="-",
            refuted="CN's error rises from 32 images to 2 at least as much as BN's",
            effects=(
                Effect(
                    "BN's rise minus CN's, from 32 to 2 (points)", lambda e: _rise(e, "bn") - _rise(e, "cn"), above=0
                ),
            ),
            note="They speak of batches of one task, where tasks follow one another, and not of small ones.",
        ),
    ),
)
