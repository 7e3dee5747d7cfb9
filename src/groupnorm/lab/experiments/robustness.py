"""Error under attack, of networks trained as ever and of networks trained under attack.

``groupnorm run robustness --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 9 minutes on two cores; Fashion-MNIST reduced to 16x16, attacked in 10 steps, in adversarial training in 3:
  error clean/within 8 of 255 after the usual training BN 20.2/59.7, GN 23.0/52.1, LN 25.2/51.6, none 21.8/47.9; after
  adversarial training BN 25.0/34.0, GN 26.4/37.6, LN 28.0/37.6, none 25.5/35.8.
- full: days of one GPU; ResNet-18 on CIFAR-10; the attack has 20 steps, 7 in adversarial training (Madry et al. 2018):
  no number is at hand.

The attack is projected gradient descent within 2, 4 and 8 of 255 in any pixel. It knows the network, and sees it
in evaluation mode.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale, narrow
from groupnorm.lab.experiments.framework.plots import over
from groupnorm.lab.models.small_resnet import NormLayer, SmallResNet
from groupnorm.lab.regimes.adversarial import RADII, Attacked
from groupnorm.lab.regimes.adversarial import Adversarial as AdversarialTraining

__all__ = ["EXPERIMENT", "AdversarialTraining", "Attacked"]  # the names of the regimes in the records


def resnet18_cifar(norm_layer: NormLayer) -> nn.Module:
    """ResNet-18 for images of 32x32: a first convolution of 3x3, and no pooling after it."""
    return SmallResNet(norm_layer, 3, 10, (64, 128, 256, 512), blocks=2, project=True)


def draw(evidence: Evidence) -> Figure:
    """Error over the radius of the attack, a panel for each way to train."""
    panels = {}
    for arm, rows in evidence.table.groupby("arm", sort=False):
        parts = [_rows(rows, "error", 0), *(_rows(rows, f"attacked {radius}", radius) for radius in RADII)]
        panels[f"{arm} training"] = pd.concat(parts)
    return over(
        evidence, "radius", panels, title="Error under attack", x_name="radius of the attack (255ths)", log_x=False
    )


def _rows(table: pd.DataFrame, measure: str, radius: int) -> pd.DataFrame:
    return table[["family", "seed"]].assign(radius=radius, error=table.get(measure, float("nan")))


def _harm(evidence: Evidence, radius: int) -> pd.Series[float]:
    """How far BN's error lies above that without norm, after the usual training, by seed."""
    bn, none = (evidence.at(f"attacked {radius}", arm="usual", family=norm) for norm in ("bn", "none"))
    return bn - none


def _gain(evidence: Evidence, norm: str) -> pd.Series[float]:
    """How far adversarial training lowers the error within 8 of 255, by seed."""
    ever, hardened = (evidence.at("attacked 8", arm=arm, family=norm) for arm in ("usual", "adversarial"))
    return ever - hardened


def _arms(base: dict[str, Any], options: dict[str, Any], training: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    module = "groupnorm.lab.experiments.robustness:"
    return {
        "usual": [base | {"task": module + "Attacked", "options": options}],
        "adversarial": [base | {"task": module + "AdversarialTraining", "options": options | training}],
    }


NORMS = ("bn", "gn", "ln", "none")
FASHION: dict[str, Any] = {
    "dataset": "fashion-mnist", "model": "resnet-tiny", "image_size": 16, "norms": narrow(*NORMS), "batch_sizes": (32,),
    "learning_rate": 0.05, "seeds": 5, "epochs": 5, "limit_train": 2000, "limit_val": 1000,
}  # fmt: skip
SMOKE: dict[str, Any] = {
    "dataset": "digits", "image_size": None, "seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 32,
}  # fmt: skip
CIFAR: dict[str, Any] = {
    "dataset": "cifar10", "model": "groupnorm.lab.experiments.robustness:resnet18_cifar", "norms": NORMS,
    "batch_sizes": (128,), "learning_rate": 0.0025, "weight_decay": 5e-4, "seeds": 3, "epochs": 100, "augment": "cifar",
    "schedule": "step",
}  # fmt: skip
"""0.01 for 128 images, at which the network without norm trains too."""

EXPERIMENT = Experiment(
    name="robustness",
    head=str(__doc__),
    title="Error under attack",
    question="Does batch norm make networks easier to attack, and what does adversarial training change?",
    source="Galloway et al. 2019, arXiv:1905.02161; Madry et al. 2018, arXiv:1706.06083",
    smoke=Scale(
        arms=_arms(
            FASHION | SMOKE,
            {"white": 16, "images": 32, "steps": 2},
            {"training_steps": 1, "training_step_size": 8},
        ),
    ),
    small=Scale(
        arms=_arms(
            FASHION,
            {"white": 255, "images": 500, "steps": 10},
            {"training_steps": 3, "training_step_size": 4},
        ),
    ),
    full=Scale(
        arms=_arms(
            CIFAR,
            {"white": 255, "images": 10_000, "steps": 20},
            {"training_steps": 7, "training_step_size": 2},
        ),
    ),
    figure=draw,
    claims=(
        Claim(
            id="robustness-bn",
            statement="BN makes networks easier to attack than they are without norm.",
            source="Galloway et al. 2019, abstract",
            published="robustness reduced by double-digit percentages on five datasets",
            refuted="after the usual training, the error within 4 or within 8 of 255 is no higher with BN than without",
            effects=tuple(
                Effect(
                    f"BN's error minus that without norm, within {radius} of 255 (points)",
                    partial(_harm, radius=radius),
                    above=0,
                )
                for radius in RADII[1:]
            ),
        ),
        Claim(
            id="robustness-adversarial",
            statement="Adversarial training lowers the error under attack, whatever the norm.",
            source="Madry et al. 2018",
            published="-",
            refuted="the error of one of the norms within 8 of 255 does not fall",
            effects=tuple(
                Effect(
                    f"error of {norm} within 8 of 255, usual minus adversarial (points)",
                    partial(_gain, norm=norm),
                    above=0,
                )
                for norm in NORMS
            ),
        ),
    ),
)
