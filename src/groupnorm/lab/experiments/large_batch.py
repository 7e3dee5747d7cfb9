"""The other end: a large total batch, with the same number of images a worker (Wu & He 2020).

``groupnorm run large-batch --scale small``

- smoke: seconds; 128 images, too few to tell anything.
- small: 10 minutes on two cores; Fashion-MNIST at 14x14, at 32 images a worker: error at 32/128/512 images in total BN
  15.9/16.5/24.5, GN 17.4/23.1/59.1, LN 18.5/24.3/65.9, IN 16.7/19.0/87.8. 512 images leave 4 steps an epoch.
- full: weeks of up to 64 GPUs; ResNet-50 on ImageNet, in total 256 to 2,048 images at 32 a worker, 100 epochs: GN, LN
  and IN are more sensitive than BN; the paper's numbers are not at hand.

The learning rate follows the total batch and is warmed up over the first twentieth of the epochs (5 of 100), as in
Goyal et al. 2017, but from zero. As the epochs are fixed, a batch of 16 times the images leaves a sixteenth of the
steps. Batch norm's statistics are those of 32 images throughout, so that only the optimiser sees the larger batch.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale
from groupnorm.lab.experiments.framework.plots import over
from groupnorm.lab.experiments.imagenet import IMAGENET

PAPER = "Wu & He 2020 (International Journal of Computer Vision 128)"
FASHION: dict[str, Any] = {
    "dataset": "fashion-mnist",
    "model": "resnet-tiny",
    "image_size": 14,
    "norms": ("bn", "gn:8", "ln", "in"),
    "batch_sizes": (32, 128, 512),
    "normalization_batches": (32,),
    "limit_train": 2048,
    "limit_val": 2500,
    "epochs": 8,
    "warmup_epochs": 0.4,
    "seeds": 5,
}
FEW = {
    "dataset": "digits",
    "image_size": 16,
    "seeds": 2,
    "epochs": 1,
    "limit_train": 128,
    "limit_val": 32,
    "batch_sizes": (32, 64),
    "warmup_epochs": 0.5,
}


def draw(evidence: Evidence) -> Figure:
    """The error over the total batch."""
    return over(
        evidence,
        "batch_size",
        {"32 images a worker": evidence.table},
        title="Large total batches",
        x_name="images of a step, of all workers",
    )


def _rise(evidence: Evidence, family: str) -> pd.Series[float]:
    """How far the error of a norm rises from the smallest to the largest total batch."""
    sizes = evidence.table["batch_size"]
    small, large = (evidence.at(family=family, batch_size=size) for size in (sizes.min(), sizes.max()))
    return large - small


def _claim(family: str) -> Claim:
    """That a norm is more sensitive to the total batch than BN."""
    name = family.upper()
    return Claim(
        id=f"{family}-large-batch",
        statement=f"{name}'s error rises more than BN's when the total batch grows.",
        source=PAPER,
        published="-",
        refuted=f"{name}'s error rises as much as BN's from the smallest to the largest total batch, or less",
        effects=(Effect(f"{name}'s rise minus BN's (points)", lambda e: _rise(e, family) - _rise(e, "bn"), above=0),),
    )


EXPERIMENT = Experiment(
    name="large-batch",
    head=str(__doc__),
    title="Large total batches",
    question="Which norms bear a large total batch, where the learning rate is high and the steps are few?",
    source=PAPER,
    smoke=Scale(arms={"total": [FASHION | FEW]}),
    small=Scale(arms={"total": [FASHION]}),
    full=Scale(
        arms={
            "total": [
                IMAGENET
                | {
                    "norms": ("bn", "gn", "ln", "in"),
                    "batch_sizes": (256, 512, 1024, 2048),
                    "normalization_batches": (32,),
                    "warmup_epochs": 5,
                }
            ]
        },
        last=5,
    ),
    figure=draw,
    claims=tuple(_claim(family) for family in ("gn", "ln", "in")),
)
