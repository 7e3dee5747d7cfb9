"""A deeper network at a regular and at a small batch (section 4.1, "Deeper models").

``groupnorm run depth --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 4 minutes on two cores; the digits with resnet-tiny and a network three times as deep, both down to maps of
  1x1: error at 32/2 images, shallow BN 1.8/60.7, GN 3.5/2.2; deep BN 1.6/78.3, GN 3.8/2.2.
- full: weeks of eight GPUs; ResNet-50 and ResNet-101 on ImageNet, 8 workers, 100 epochs: error at 32/2 images a worker:
  ResNet-50 BN 23.6/34.7, GN 24.1/24.1; ResNet-101 BN 22.0/31.9, GN 22.4/23.0.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale
from groupnorm.lab.experiments.framework.plots import over
from groupnorm.lab.experiments.imagenet import IMAGENET
from groupnorm.lab.models.small_resnet import NormLayer, SmallResNet

PAPER = "Wu & He 2018, section 4.1"
SIZES = (32, 2)
FEW = {"seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 32, "batch_sizes": (32, 4)}


def deep_resnet(norm_layer: NormLayer) -> nn.Module:
    """resnet-tiny with three blocks in each stage, 28 norms, for digits."""
    return SmallResNet(norm_layer, 1, 10, (16, 32, 64, 128), blocks=3, project=True)


DIGITS: dict[str, Any] = {"dataset": "digits", "norms": ("bn", "gn:8"), "batch_sizes": SIZES, "seeds": 5}
DEEP = f"{__name__}:{deep_resnet.__name__}"


def draw(evidence: Evidence) -> Figure:
    """A panel for each depth."""
    table = evidence.table
    panels = {f"{arm} network": table[table["arm"] == arm] for arm in ("shallow", "deep")}
    return over(
        evidence,
        "normalization_batch",
        panels,
        title="Depth and batch size",
        x_name="images that share statistics",
        falling=True,
    )


def _arms(shared: list[dict[str, Any]], shallow: str, deep: str) -> dict[str, Any]:
    models = {"shallow": shallow, "deep": deep}
    return {arm: [options | {"model": model} for options in shared] for arm, model in models.items()}


def _error(evidence: Evidence, arm: str, family: str, size: int) -> pd.Series[float]:
    return evidence.at(arm=arm, family=family, normalization_batch=size)


def _rise(evidence: Evidence, family: str) -> pd.Series[float]:
    """How far the deep network's error rises from 32 images to 2."""
    return _error(evidence, "deep", family, 2) - _error(evidence, "deep", family, 32)


def _gain(evidence: Evidence, family: str, size: int) -> pd.Series[float]:
    """How far the error falls from the shallow to the deep network."""
    return _error(evidence, "shallow", family, size) - _error(evidence, "deep", family, size)


EXPERIMENT = Experiment(
    name="depth",
    head=str(__doc__),
    title="Depth and batch size",
    question="Does what holds of the norms at both batch sizes hold in a deeper network?",
    source=PAPER,
    smoke=Scale(
        arms=_arms([DIGITS | FEW], "resnet-tiny", DEEP),
    ),
    small=Scale(
        arms=_arms([DIGITS], "resnet-tiny", DEEP),
    ),
    full=Scale(
        arms=_arms(
            [IMAGENET | {"norms": ("bn", "gn"), "batch_sizes": (8 * n,), "normalization_batches": (n,)} for n in SIZES],
            "resnet50",
            "resnet101",
        ),
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="deep-bn-small-batch",
            statement="BN's error rises steeply at 2 images in a deep network too.",
            source=PAPER,
            published="ResNet-101: 22.0% at 32 images, 31.9% at 2: +9.9 points",
            refuted="the deep network's error with BN is at most 3 points higher at 2 images than at 32",
            effects=(Effect("deep BN's error at 2 minus at 32 (points)", lambda e: _rise(e, "bn"), above=3),),
        ),
        Claim(
            id="deep-gn-small-batch",
            statement="GN's error hardly depends on the batch size in a deep network either.",
            source=PAPER,
            published="ResNet-101: 22.4% at 32 images, 23.0% at 2: +0.6 points",
            refuted="the deep network's error with GN is 2 points or more away at 2 images from that at 32",
            effects=(Effect("deep GN's error at 2 minus at 32 (points)", lambda e: _rise(e, "gn"), above=-2, below=2),),
        ),
        Claim(
            id="depth-helps",
            statement="The deeper network has the lower error at 32 images, with BN and with GN.",
            source=PAPER,
            published="from ResNet-50 to ResNet-101 BN 23.6% to 22.0%, GN 24.1% to 22.4%: 1.6 and 1.7 points",
            refuted="with one of the two the deeper network's error is that of the shallower one or higher",
            effects=(
                Effect(
                    "BN's error in the shallow minus the deep network (points)", lambda e: _gain(e, "bn", 32), above=0
                ),
                Effect(
                    "GN's error in the shallow minus the deep network (points)", lambda e: _gain(e, "gn", 32), above=0
                ),
            ),
            note="Digits of 8x8 do not need more than 12 layers.",
        ),
    ),
)
