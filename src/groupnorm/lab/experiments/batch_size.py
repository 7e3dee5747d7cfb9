"""Error over batch size: batch norm rises steeply below 8 images, group norm stays flat (Figure 1, Table 2).

``groupnorm run batch-size --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 6 minutes on two cores; the digits at 8x8, whose last maps are 1x1: error at 32/16/8/4/2 images BN
  1.8/1.7/2.2/2.1/60.7, GN 3.5/3.1/2.6/2.2/2.2, LN 7.0/4.2/3.4/3.6/3.0; in the second protocol BN rises from 1.8 to 65.8
  and GN stays at 3.5.
- full: weeks of eight GPUs; ResNet-50 on ImageNet, 8 workers, 100 epochs: error at 32/16/8/4/2 images a worker: BN
  23.6/23.7/24.8/27.3/34.7, GN 24.1/24.2/24.0/24.2/24.1.

Two protocols. In "sgd" the batch of the optimiser is the batch of the statistics, and the learning rate follows it.
In "statistics" the optimiser sees 32 images at every step (256 at full scale, 32 a worker) and only the images that
share statistics become fewer, so that nothing but the norm changes.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale, narrow
from groupnorm.lab.experiments.framework.plots import by, over
from groupnorm.lab.experiments.imagenet import IMAGENET

SIZES = (32, 16, 8, 4, 2)
NORMS = {"norms": ("bn", "gn", "ln", "in")}
DIGITS: dict[str, Any] = {"dataset": "digits", "model": "resnet-tiny", "norms": narrow("bn", "gn", "ln"), "seeds": 5}
PROTOCOLS = {"sgd": "SGD's batch is that of the statistics", "statistics": "SGD's batch stays the same"}
FEW = {"seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 32}


def draw(evidence: Evidence) -> Figure:
    """Figure 1 of the paper, a panel for each protocol."""
    return over(
        evidence,
        "normalization_batch",
        by(evidence.table, "arm", PROTOCOLS.__getitem__),
        title="Error over batch size",
        x_name="images that share statistics",
        falling=True,
    )


def _rise(evidence: Evidence, norm: str, many: int, arm: str = "sgd") -> pd.Series[float]:
    """How far the error rises from many images to 2."""
    few, start = (evidence.at(arm=arm, family=norm, normalization_batch=size) for size in (2, many))
    return few - start


def _lead(evidence: Evidence, size: int) -> pd.Series[float]:
    """How far BN's error lies above GN's."""
    bn, gn = (evidence.at(arm="sgd", family=norm, normalization_batch=size) for norm in ("bn", "gn"))
    return bn - gn


EXPERIMENT = Experiment(
    name="batch-size",
    head=str(__doc__),
    title="Error over batch size",
    question="How does the error of each norm depend on the number of images that share statistics?",
    source="Wu & He 2018, Figure 1 and Table 2",
    smoke=Scale(
        arms={
            "sgd": [DIGITS | FEW | {"batch_sizes": (32, 4)}],
            "statistics": [DIGITS | FEW | {"batch_sizes": (32,), "normalization_batches": (32, 4)}],
        },
    ),
    small=Scale(
        arms={
            "sgd": [DIGITS | {"batch_sizes": SIZES}],
            "statistics": [DIGITS | {"batch_sizes": (32,), "normalization_batches": SIZES}],
        },
    ),
    full=Scale(
        arms={
            "sgd": [IMAGENET | NORMS | {"batch_sizes": (8 * n,), "normalization_batches": (n,)} for n in SIZES],
            "statistics": [IMAGENET | NORMS | {"batch_sizes": (256,), "normalization_batches": SIZES}],
        },
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="bn-small-batch",
            statement="BN's error rises steeply when fewer than 8 images share statistics.",
            source="Wu & He 2018, Table 2",
            published="23.6% at 32 images, 24.8% at 8, 34.7% at 2",
            refuted="from 8 images to 2 BN's error rises by 3 points or less",
            effects=(Effect("BN's error at 2 minus at 8 (points)", lambda e: _rise(e, "bn", 8), above=3),),
        ),
        Claim(
            id="gn-small-batch",
            statement="GN's error does not depend on the batch size.",
            source="Wu & He 2018, Table 2",
            published="24.1% at 32 images, 24.1% at 2",
            refuted="from 32 images to 2 GN's error changes by 2 points or more",
            effects=(Effect("GN's error at 2 minus at 32 (points)", lambda e: _rise(e, "gn", 32), above=-2, below=2),),
        ),
        Claim(
            id="ln-small-batch",
            statement="LN's error does not rise with fewer images either, since it has no batch statistics.",
            source="after Wu & He 2018, who say it of GN",
            published="-",
            refuted="from 32 images to 2 LN's error rises by 2 points or more",
            effects=(Effect("LN's error at 2 minus at 32 (points)", lambda e: _rise(e, "ln", 32), below=2),),
        ),
        Claim(
            id="gn-better-at-2",
            statement="At 2 images GN's error is far lower than BN's, by 10.6 points on ImageNet.",
            source="Wu & He 2018, Table 2 and abstract",
            published="24.1% against 34.7%: 10.6 points",
            refuted="at 2 images GN's error is at most 3 points lower than BN's",
            effects=(Effect("BN's error minus GN's at 2 (points)", lambda e: _lead(e, 2), above=3),),
        ),
        Claim(
            id="bn-better-at-32",
            statement="At 32 images BN's error is lower than GN's, by half a point on ImageNet.",
            source="Wu & He 2018, Table 1",
            published="23.6% against 24.1%: 0.5 points",
            refuted="at 32 images BN's error is not lower than GN's",
            effects=(Effect("GN's error minus BN's at 32 (points)", lambda e: -_lead(e, 32), above=0),),
        ),
        Claim(
            id="gn-better-at-4",
            statement="At 4 images GN is already better than BN.",
            source="Wu & He 2018, Table 2",
            published="24.2% against 27.3%: 3.1 points",
            refuted="at 4 images GN's error is not lower than BN's",
            effects=(Effect("BN's error minus GN's at 4 (points)", lambda e: _lead(e, 4), above=0),),
            note="On these images BN fails only at 2, where each channel of the last maps, 1x1, has two values.",
        ),
        Claim(
            id="statistics-not-sgd",
            statement="It is the batch of the statistics that hurts BN, not that of SGD.",
            source="Wu & He 2018, abstract ('inaccurate batch statistics estimation'); Ioffe 2017",
            published="-",
            refuted="with the same images a step, BN's error rises by 3 points or less from 32 images that share "
            "statistics to 2, or GN's by 2 or more from 32 images a pass to 2",
            effects=(
                Effect(
                    "BN's error at 2 minus at 32 images that share statistics (points)",
                    lambda e: _rise(e, "bn", 32, arm="statistics"),
                    above=3,
                ),
                Effect(
                    "GN's error at 2 minus at 32 images a pass (points)",
                    lambda e: _rise(e, "gn", 32, arm="statistics"),
                    below=2,
                ),
            ),
        ),
    ),
)
