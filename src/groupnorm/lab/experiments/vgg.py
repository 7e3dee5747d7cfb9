"""VGG-16 trains without any norm: what do norms do to its responses, and to its error (Figure 6)?

``groupnorm run vgg --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 4 minutes on two cores; a VGG-16 with an eighth of the channels on 8,000 images of Fashion-MNIST: error 15.0
  without norm, 11.7 with BN, 13.4 with GN; the responses without norm widen by a third, with a norm they do not.
- full: weeks of eight GPUs; VGG-16 on ImageNet, 8 workers of 32 images, 100 epochs: error without norm 29 to 30, BN 28,
  GN 27.6.

Residual networks hardly train without a norm; VGG-16 does, so that there is a control. The recipe is the same for all
three and is the one that the network without norm trains with: He's initialisation and a small learning rate.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from groupnorm.lab.analysis.labels import label
from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale, narrow
from groupnorm.lab.experiments.framework.plots import by, by_epoch
from groupnorm.lab.experiments.imagenet import IMAGENET
from groupnorm.lab.regimes.images import ImageTraining

PERCENTILES = (1, 20, 80, 99)
IMAGES = 128
"""Validation images, evenly spaced, whose responses are looked at."""


class VggTraining(ImageTraining):
    """Training that also records percentiles of the responses of the last convolution, before its norm and its ReLU.

    They are over all images, channels and positions, in evaluation mode: ``p1``, ``p20``, ``p80`` and ``p99``.
    """

    stackable = True
    parallel = True

    def measure(self) -> dict[str, float]:
        found = super().measure()  # puts the network into evaluation mode
        images = self.dataset.val_images
        chosen = torch.linspace(0, len(images) - 1, min(IMAGES, len(images))).long()
        responses = last_responses(self.model, self.inputs(images[chosen].to(self.device)))
        quantiles = torch.tensor(PERCENTILES, device=self.device) / 100
        values = torch.quantile(responses.float().flatten(), quantiles).tolist()
        return found | {f"p{q}": value for q, value in zip(PERCENTILES, values, strict=True)}


def last_responses(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the last convolution of a network gives for some inputs."""
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    seen: list[Tensor] = []
    # A copy, as the ReLU after a network without norms works in place.
    handle = last.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        handle.remove()
    return seen[0]


NORMS = {"norms": ("none", "bn", "gn"), "batch_sizes": (32,), "task": f"{__name__}:VggTraining", "weight_decay": 5e-4}
SMALL: dict[str, Any] = NORMS | {"norms": narrow("none", "bn", "gn"), "model": "vgg-small", "learning_rate": 0.02}
GARMENTS: dict[str, Any] = SMALL | {"dataset": "fashion-mnist"}


def draw(evidence: Evidence) -> Figure:
    """Figure 6 of the paper: the percentiles by epoch, a panel for each norm."""
    errors = evidence.table.groupby("norm")["error"].mean()
    figure = by_epoch(
        evidence,
        {f"p{q}": f"{q}th percentile" if q > 1 else "1st percentile" for q in PERCENTILES},
        by(evidence.curves, "norm", lambda norm: f"{label(norm)}, error {errors[norm]:.1f}%"),
        title="Responses of VGG's last convolution, before its norm",
        y_name="response",
        log=False,
    )
    limits = [axes.get_ylim() for axes in figure.axes]
    for axes in figure.axes:  # one scale, so that the bands' widths can be compared
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def _spread(evidence: Evidence, norm: str) -> pd.Series[float]:
    """The distance of the outer percentiles at the end, by seed."""
    return evidence.at_epoch(-1, "p99", family=norm) - evidence.at_epoch(-1, "p1", family=norm)


EXPERIMENT = Experiment(
    name="vgg",
    head=str(__doc__),
    title="VGG with and without norms",
    question="What do norms do to the responses and to the error of a network that trains without any?",
    source="Wu & He 2018, Figure 6",
    smoke=Scale(
        arms={"vgg": [SMALL | {"dataset": "digits"} | {"seeds": 2, "epochs": 2, "limit_train": 64, "limit_val": 32}]},
    ),
    small=Scale(
        arms={"vgg": [GARMENTS | {"seeds": 5, "epochs": 5, "limit_train": 8000, "limit_val": 2000}]},
    ),
    full=Scale(
        arms={
            # The authors': rate 0.01 for 256 images. Theirs falls a third time after 80 epochs, this one after 90.
            "vgg": [
                IMAGENET
                | NORMS
                | {"model": "vgg16", "batch_sizes": (256,), "normalization_batches": (32,), "learning_rate": 0.00125}
            ]
        },
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="vgg-gn-below-bn",
            statement="In VGG-16 GN's error is lower than BN's.",
            source="Wu & He 2018, section 4.1; tensorpack, examples/ImageNetModels (the authors' code)",
            published="BN 28%, GN 27.6%: 0.4 points",
            refuted="GN's error is not below BN's",
            effects=(
                Effect(
                    "BN's error minus GN's (points)",
                    lambda e: e.at(family="bn") - e.at(family="gn"),
                    above=0,
                ),
            ),
            note="At small scale the first stage has 8 channels, a group each: GN is IN there.",
        ),
        Claim(
            id="vgg-norms-below-none",
            statement="VGG-16 trains without a norm, but both norms lower its error.",
            source="tensorpack, examples/ImageNetModels (the authors' code)",
            published="without norm 29 to 30%, BN 28%, GN 27.6%",
            refuted="one of the norms has no lower error than the network without",
            effects=(
                Effect("error without norm minus BN's (points)", lambda e: e.at(family="none") - e.at(family="bn"), 0),
                Effect("error without norm minus GN's (points)", lambda e: e.at(family="none") - e.at(family="gn"), 0),
            ),
        ),
        Claim(
            id="vgg-responses-drift",
            statement="Without a norm the percentiles of the last convolution's responses drift far apart; with one "
            "they stay in a narrow band.",
            source="Wu & He 2018, Figure 6",
            published="1st to 99th percentile: about -60 to +20 without norm, -5 to 3 with BN or GN: ten times as wide",
            refuted="without norm they are at most twice as far apart as with one",
            effects=(
                Effect("width without norm over BN's (times)", lambda e: _spread(e, "none") / _spread(e, "bn"), 2),
                Effect("width without norm over GN's (times)", lambda e: _spread(e, "none") / _spread(e, "gn"), 2),
            ),
            note="The small scale has a twentieth of the epochs over which the paper watches the drift.",
        ),
    ),
)
