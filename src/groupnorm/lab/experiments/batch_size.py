"""Error over batch size: batch norm rises steeply below 8 images, group norm stays flat (Figure 1, Table 2).

``groupnorm run batch-size --scale small``

- smoke: seconds.
- small: the digits at 8x8, whose last maps are 1x1, in both protocols.
- full: ResNet-50 on ImageNet, 8 workers, 100 epochs.

Two protocols. In "sgd" the batch of the optimiser is the batch of the statistics, and the learning rate follows it.
In "statistics" the optimiser sees 32 images at every step (256 at full scale, 32 a worker) and only the images that
share statistics become fewer, so that nothing but the norm changes.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from groupnorm.lab.experiments.claim import Claim, Effect
from groupnorm.lab.experiments.evidence import Evidence
from groupnorm.lab.experiments.experiment import Experiment, Scale
from groupnorm.lab.experiments.imagenet import IMAGENET
from groupnorm.lab.experiments.pictures import by, over

SIZES = (32, 16, 8, 4, 2)
NORMS = {"norms": ("bn", "gn", "ln", "in")}
DIGITS: dict[str, Any] = {"dataset": "digits", "model": "resnet-tiny", "norms": ("bn", "gn", "ln"), "seeds": 5}
FEW = {"seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 32}


def draw(evidence: Evidence) -> Figure:
    """Figure 1 of the paper, a panel for each protocol."""
    return over(
        evidence,
        "normalization_batch",
        by(evidence.table, "arm"),
        title="Error over batch size",
        x_name="images that share statistics",
        falling=True,
    )


def _rise(evidence: Evidence, norm: str, protocol: str, to: int = 2) -> Any:
    """How far the error rises from 32 images to fewer, by seed."""
    few, many = (evidence.at(arm=protocol, norm=norm, normalization_batch=size) for size in (to, 32))
    return few - many


EXPERIMENT = Experiment(
    name="batch-size",
    title="Error over batch size",
    question="How does the error of each norm depend on the number of images that share statistics?",
    source="Wu & He 2018, Figure 1 and Table 2",
    smoke=Scale(
        arms={
            "sgd": [DIGITS | FEW | {"batch_sizes": (32, 4)}],
            "statistics": [DIGITS | FEW | {"batch_sizes": (32,), "normalization_batches": (32, 4)}],
        },
        time="seconds",
        result="none to speak of: 64 images",
    ),
    small=Scale(
        arms={
            "sgd": [DIGITS | {"batch_sizes": SIZES}],
            "statistics": [DIGITS | {"batch_sizes": (32,), "normalization_batches": SIZES}],
        },
        time="to be measured",
        result="to be measured",
    ),
    full=Scale(
        arms={
            "sgd": [IMAGENET | NORMS | {"batch_sizes": (8 * n,), "normalization_batches": (n,)} for n in SIZES],
            "statistics": [IMAGENET | NORMS | {"batch_sizes": (256,), "normalization_batches": SIZES}],
        },
        time="weeks of eight GPUs",
        result="error at 32/16/8/4/2 images a worker: BN 23.6/23.7/24.8/27.3/34.7, GN 24.1/24.2/24.0/24.2/24.1",
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="bn-small-batch",
            statement="BN's error rises steeply when fewer than 8 images share statistics.",
            source="Wu & He 2018, Table 2",
            published="23.6% at 32 images, 34.7% at 2: +11.1 points",
            refuted="BN's error at 2 images is at most 3 points above that at 32",
            effects=(Effect("BN's error at 2 minus at 32 (points)", lambda e: _rise(e, "bn", "sgd"), above=3),),
        ),
        Claim(
            id="gn-small-batch",
            statement="GN's error does not depend on the batch size.",
            source="Wu & He 2018, Table 2",
            published="24.1% at 32 images, 24.1% at 2: 0.0 points",
            refuted="GN's error at 2 images is more than 2 points away from that at 32",
            effects=(
                Effect("GN's error at 2 minus at 32 (points)", lambda e: _rise(e, "gn", "sgd"), above=-2, below=2),
            ),
        ),
    ),
)
