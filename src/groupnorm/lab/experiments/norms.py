"""Batch norm, its alternatives and nothing at a regular batch size, in training and validation (Table 1, Figure 4).

``groupnorm run norms --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 6 minutes on two cores; Fashion-MNIST at 14x14, where the last maps are 2x2 and instance norm is defined
  throughout: error BN 15.1, IN 16.0, GN 16.5, WN 17.7, LN 18.0, none 18.8; BN's training error is the lowest too.
- full: weeks of eight GPUs; ResNet-50 on ImageNet, 32 images a worker, 100 epochs: error: BN 23.6, GN 24.1, LN 25.3, IN
  28.4, WN 28.2; no number for none.

Each arm is a norm, and all see the same batches. "wn" is weight norm, which reparametrises the weights and leaves the
activations alone. It starts from the weights of the others: the initialisation of its authors, which standardises the
outputs of a first batch, made it diverge at the learning rate that all have here. At full scale blocks start as their
shortcuts, as those of the norms do, because without a norm every other block adds to the variance; in the small
network that only slowed it down.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale
from groupnorm.lab.experiments.framework.plots import by_epoch
from groupnorm.lab.experiments.imagenet import IMAGENET
from groupnorm.lab.regimes.images import ImageTraining

TABLE = "Wu & He 2018, Table 1"
GROUPS_OF_SMALL = "gn:8"  # with 16 to 128 channels "gn" would be instance norm in half of the layers
FASHION: dict[str, Any] = {
    "dataset": "fashion-mnist",
    "model": "resnet-tiny",
    "image_size": 14,
    "batch_sizes": (32,),
    "limit_train": 2500,
    "limit_val": 2500,
    "epochs": 8,
    "seeds": 5,
}
FEW = {"dataset": "digits", "image_size": 16, "seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 32}


class WeightNormTraining(ImageTraining):
    """Trains the network with weight norm on every convolution and linear layer.

    Options: ``as_shortcuts``, as of :func:`reparametrise`.
    """

    stackable = True
    parallel = True

    def build(self) -> nn.Module:
        """The network of the cell, reparametrised."""
        network = super().build()
        reparametrise(network, as_shortcuts=self.cell.options["as_shortcuts"])
        return network


def reparametrise(network: nn.Module, *, as_shortcuts: bool) -> None:
    """Write every weight as ``g v / |v|``, for each output channel, in place, and give convolutions a bias.

    Args:
        network: a residual one; its weights keep their values.
        as_shortcuts: but ``g`` is 0 in the last convolution of each block, as the scale of a norm there would be.

    Source: Salimans & Kingma 2016 (arXiv:1602.07868), section 2.
    """
    for layer in [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]:
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
        weight_norm(layer)
    for block in network.modules() if as_shortcuts else ():
        last = getattr(block, "conv3", getattr(block, "conv2", None))
        if last is not None:
            nn.init.zeros_(last.parametrizations.weight.original0)


def draw(evidence: Evidence) -> Figure:
    """Figure 4 of the paper, with a line for each of its norms."""
    curves = evidence.curves
    curves = curves.assign(form=curves["arm"].replace("wn", "WN"))
    panels = {
        "training": curves.assign(shown=curves["train_error"]),
        "validation": curves.assign(shown=curves["error"]),
    }
    return by_epoch(evidence, {"shown": "error"}, panels, title="Norms at a regular batch size", lines="form", log=True)


def _arms(shared: dict[str, Any], group_norm: str, *, as_shortcuts: bool) -> dict[str, Any]:
    specs = {"bn": "bn", "gn": group_norm, "ln": "ln", "in": "in", "wn": "none", "none": "none"}
    arms = {arm: [shared | {"norms": (spec,)}] for arm, spec in specs.items()}
    arms["wn"][0] |= {
        "task": f"{__name__}:{WeightNormTraining.__name__}",
        "options": {"as_shortcuts": as_shortcuts},
    }
    return arms


def _behind(evidence: Evidence, norm: str, other: str, measure: str = "error") -> pd.Series[float]:
    """How far the error of a norm lies above that of another."""
    return evidence.at(measure, arm=norm) - evidence.at(measure, arm=other)


EXPERIMENT = Experiment(
    name="norms",
    head=str(__doc__),
    title="Norms at a regular batch size",
    question="How do the norms train and validate where batch norm has all the images that it needs?",
    source="Wu & He 2018, Table 1 and Figure 4",
    smoke=Scale(
        arms=_arms(FASHION | FEW, GROUPS_OF_SMALL, as_shortcuts=False),
    ),
    small=Scale(
        arms=_arms(FASHION, GROUPS_OF_SMALL, as_shortcuts=False),
    ),
    full=Scale(
        arms=_arms(IMAGENET | {"batch_sizes": (256,), "normalization_batches": (32,)}, "gn", as_shortcuts=True),
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="gn-trains-better",
            statement="GN's training error is lower than BN's.",
            source="Wu & He 2018, Figure 4",
            published="-",
            refuted="GN's training error is that of BN or higher",
            effects=(
                Effect(
                    "GN's training error minus BN's (points)", lambda e: _behind(e, "gn", "bn", "train_error"), below=0
                ),
            ),
            note="In a few epochs no norm fits the training images, and what BN takes to regularise does not show.",
        ),
        Claim(
            id="bn-validates-better",
            statement="BN's validation error is a little lower than GN's.",
            source=TABLE,
            published="BN 23.6%, GN 24.1%: 0.5 points",
            refuted="GN's error is that of BN or lower, or 2 points above it or more",
            effects=(Effect("GN's error minus BN's (points)", lambda e: _behind(e, "gn", "bn"), above=0, below=2),),
        ),
        Claim(
            id="ln-behind-gn",
            statement="LN's validation error is higher than GN's.",
            source=TABLE,
            published="LN 25.3%, GN 24.1%: 1.2 points",
            refuted="LN's error is that of GN or lower",
            effects=(Effect("LN's error minus GN's (points)", lambda e: _behind(e, "ln", "gn"), above=0),),
        ),
        Claim(
            id="in-behind-gn",
            statement="IN's validation error is higher than GN's.",
            source=TABLE,
            published="IN 28.4%, GN 24.1%: 4.3 points",
            refuted="IN's error is that of GN or lower",
            effects=(Effect("IN's error minus GN's (points)", lambda e: _behind(e, "in", "gn"), above=0),),
        ),
        Claim(
            id="wn-behind-bn",
            statement="WN's validation error is higher than BN's.",
            source="Wu & He 2018, section 4.1",
            published="WN 28.2%, BN 23.6%: 4.6 points",
            refuted="WN's error is that of BN or lower",
            effects=(Effect("WN's error minus BN's (points)", lambda e: _behind(e, "wn", "bn"), above=0),),
        ),
    ),
)
