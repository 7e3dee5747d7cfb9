"""What norms do to gradients, to the inputs of layers and to the number of steps, in a network without shortcuts.

``groupnorm run signals --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 5 minutes on two cores; a VGG-16 with an eighth of the channels on 4,000 images of Fashion-MNIST: before
  training the first layer's gradient is 0.005 of the last one's without norm and with LeCun's weights, 12 times with
  BN, 2.5 times with GN; error none 19.9, BN 13.9, GN 17.6, LN 20.0; an epoch with GN takes 0.73 times that with BN.
- full: months of eight GPUs; VGG-16 on ImageNet, 8 workers of 32 images, 100 epochs: the papers measured these things
  in networks of their own.

Three arms, the same norms in each: He's initial weights; weights of half their variance (LeCun's), with which signals
fade by a factor of 1.4 a layer; and He's with five times the learning rate.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext, LogLocator
from torch import Tensor, nn

from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import Dataset
from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale, narrow
from groupnorm.lab.experiments.framework.plots import over
from groupnorm.lab.experiments.imagenet import IMAGENET
from groupnorm.lab.experiments.probe import Layer, probe, similarity
from groupnorm.lab.regimes.images import ImageTraining

IMAGES = 128
"""Training images, evenly spaced, that the network is shown after each epoch."""
LAYERS = range(1, 14)
"""The convolutions of VGG-16."""


class SignalsTraining(ImageTraining):
    """Training that also shows the network one fixed batch after each epoch, and records for each layer ``i``:

    - ``gradient_i``: length of the gradient of the loss with respect to the layer's output;
    - ``start_i``: the same before training;
    - ``mean_i``, ``std_i``: of the layer's output;
    - ``shift_i``: how far the mean of a channel (root mean square) moved since the epoch before, in ``std_i`` of then;
    - ``settled_i``, after the last epoch: similarity (linear CKA, 0 to 1) of the layer's output to its last one,
      averaged over all earlier epochs. The earlier a layer is done, the higher.

    The option ``variance`` is that of the initial weights times the inputs of a neuron: 2 is He's, 1 is LeCun's.
    """

    stackable = True
    parallel = True

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        super().__init__(cell, dataset)
        layers = self.look()
        self.start = {f"start_{i}": float(layer.gradient.norm()) for i, layer in enumerate(layers, 1)}
        self.moments = [layer.moments() for layer in layers]
        self.likenesses: list[Tensor] = []  # [layers, images, images] of each epoch

    def build(self) -> nn.Module:
        model = super().build()
        gain = self.cell.options["variance"] ** 0.5
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
        return model

    def look(self) -> list[Layer]:
        """Each layer's output and gradient on the fixed batch."""
        count = len(self.dataset.train_images)
        chosen = torch.linspace(0, count - 1, min(IMAGES, count)).long()
        images = self.inputs(self.dataset.train_images[chosen].to(self.device))
        return probe(self.model, images, self.dataset.train_labels[chosen].to(self.device))

    def measure(self) -> dict[str, float]:
        layers = self.look()
        before, self.moments = self.moments, [layer.moments() for layer in layers]
        self.likenesses.append(torch.stack([layer.likeness() for layer in layers]))
        found = super().measure() | self.start
        for i, layer in enumerate(layers, 1):
            (mean, _), (old_mean, old_std) = self.moments[i - 1], before[i - 1]
            found[f"gradient_{i}"] = float(layer.gradient.norm())
            found[f"mean_{i}"], found[f"std_{i}"] = float(layer.output.mean()), float(layer.output.std())
            found[f"shift_{i}"] = float((mean - old_mean).square().mean().sqrt() / old_std.clamp_min(1e-30))
        *earlier, last = self.likenesses
        if self.finished and earlier:
            for i in range(len(layers)):
                found[f"settled_{i + 1}"] = float(np.mean([similarity(now[i], last[i]) for now in earlier]))
        return found

    def state_dict(self) -> dict[str, Any]:
        kept = {"start": self.start, "moments": self.moments, "likenesses": self.likenesses}
        return super().state_dict() | {"signals": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        kept = state["signals"]
        self.start, self.moments, self.likenesses = kept["start"], list(kept["moments"]), list(kept["likenesses"])


NORMS = {"norms": ("none", "bn", "gn", "ln"), "task": f"{__name__}:SignalsTraining", "weight_decay": 5e-4}
NARROW = {"norms": narrow("none", "bn", "gn", "ln")}
GARMENTS: dict[str, Any] = NORMS | NARROW | {"dataset": "fashion-mnist", "model": "vgg-small", "batch_sizes": (32,)}
SMALL: dict[str, Any] = GARMENTS | {"seeds": 3, "epochs": 5, "limit_train": 4000, "limit_val": 2000}
SMOKE: dict[str, Any] = NORMS | NARROW | {"dataset": "digits", "model": "vgg-small", "batch_sizes": (32,), "seeds": 2}
FULL: dict[str, Any] = IMAGENET | NORMS | {"model": "vgg16", "batch_sizes": (256,), "normalization_batches": (32,)}


def _arms(options: dict[str, Any], rate: float) -> dict[str, list[dict[str, Any]]]:
    return {
        "he": [options | {"learning_rate": rate, "options": {"variance": 2.0}}],
        "lecun": [options | {"learning_rate": rate, "options": {"variance": 1.0}}],
        "he, 5 x rate": [options | {"learning_rate": 5 * rate, "options": {"variance": 2.0}}],
    }


def draw(evidence: Evidence) -> Figure:
    """By layer: gradients before training for both initial weights, then what the layers did in training."""
    table, curves = evidence.table, evidence.curves
    figure = over(
        evidence,
        "layer",
        {
            "gradient before training, he": _by_layer(table[table.arm == "he"], "start"),
            "gradient before training, lecun": _by_layer(table[table.arm == "lecun"], "start"),
            "gradient after training, he": _by_layer(table[table.arm == "he"], "gradient"),
            "shift of the output an epoch (sd), he": _by_layer(curves[curves.arm == "he"], "shift"),
            "standard deviation of the output, he": _by_layer(table[table.arm == "he"], "std"),
            "similarity to the last epoch, he": _by_layer(table[table.arm == "he"], "settled"),
        },
        title="Signals in VGG-16 by layer",
        x_name="layer",
        y="value",
        y_name="",
        log_x=False,
    )
    for axes in figure.axes:
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_locator(LogLocator(numticks=9))  # whole powers of ten
            axes.yaxis.set_major_formatter(LogFormatterMathtext())
    return figure


def _by_layer(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A row for each norm, seed and layer; a run that did not end has none."""
    columns = {f"{measure}_{i}": i for i in LAYERS if f"{measure}_{i}" in rows}
    long = rows.rename(columns=columns).melt(["family", "seed"], list(columns.values()), "layer", "value").dropna()
    return long.groupby(["family", "seed", "layer"], sort=False)["value"].mean().reset_index()


def _decades(evidence: Evidence, norm: str, arm: str) -> pd.Series[float]:
    """By how many powers of ten the gradient before training grows from the last layer back to the first, by seed."""
    first, last = (evidence.at(f"start_{i}", family=norm, arm=arm) for i in (LAYERS[0], LAYERS[-1]))
    return (first / last).apply(np.log10)


def _dependence(evidence: Evidence, norm: str) -> pd.Series[float]:
    """Powers of ten between the first layer's gradients with initial weights of variance 2 and of variance 1."""
    he, lecun = (evidence.at("start_1", family=norm, arm=arm) for arm in ("he", "lecun"))
    return (he / lecun).apply(np.log10)


def _mean(evidence: Evidence, measure: str, layers: range, norm: str, source: str = "table") -> pd.Series[float]:
    """A measure averaged over layers (and over epochs, of curves) in the arm of He's weights, by seed."""
    rows = getattr(evidence, source)
    rows = _by_layer(rows[(rows.arm == "he") & (rows.family == norm)], measure)
    return rows[rows.layer.isin(layers)].groupby("seed")["value"].mean()


def _order(evidence: Evidence, norm: str) -> pd.Series[float]:
    """How much closer to their end the first four layers are than the last four, on the way there, by seed."""
    return _mean(evidence, "settled", LAYERS[:4], norm) - _mean(evidence, "settled", LAYERS[-4:], norm)


def steps_to_target(evidence: Evidence, norm: str, arm: str) -> pd.Series[float]:
    """Steps until the network is, after an epoch, as good as the one without norm ever is, by seed.

    That is the network of the same seed with He's weights and the plain learning rate. One that never gets there,
    also because it diverged, counts with the steps of the whole training.
    """
    table, curves = evidence.table, evidence.curves
    target = curves[(curves.arm == "he") & (curves.norm == "none")].groupby("seed")["error"].min()
    ended = table[(table.arm == arm) & (table.family == norm) & table.status.isin(("finished", "diverged"))]
    own = curves[(curves.arm == arm) & (curves.family == norm)]
    found = {}
    for seed in target.index.intersection(list(ended.seed)):
        there = own[(own.seed == seed) & (own.error <= target[seed])]
        found[seed] = float(there.step.min() if len(there) else curves.step.max())
    return pd.Series(found, dtype=float)


def _speedup(evidence: Evidence, arm: str) -> pd.Series[float]:
    return steps_to_target(evidence, "none", "he") / steps_to_target(evidence, "bn", arm)


def time_ratio(evidence: Evidence) -> pd.Series[float]:
    """GN's training time over BN's, by epoch: seeds that are trained as one network share a clock."""
    curves = evidence.curves
    gn, bn = (
        curves[(curves.arm == "he") & (curves.family == norm)].groupby("epoch")["seconds"].mean()
        for norm in ("gn", "bn")
    )
    return gn / bn


EXPERIMENT = Experiment(
    name="signals",
    head=str(__doc__),
    title="Signals by depth",
    question="What do norms do to gradients, to the inputs of layers, and to the number of steps?",
    source="Ioffe & Szegedy 2015; Yang et al. 2019; Raghu et al. 2017",
    smoke=Scale(
        arms=_arms(SMOKE | {"epochs": 2, "limit_train": 64, "limit_val": 32}, 0.02),
    ),
    small=Scale(arms=_arms(SMALL, 0.02)),
    full=Scale(
        arms=_arms(FULL, 0.00125),
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="signals-initial-weights",
            statement="A norm makes the gradients independent of the scale of the initial weights.",
            source="Ioffe & Szegedy 2015, abstract ('be less careful about initialization')",
            published="-",
            refuted="halving the variance of the initial weights changes the first layer's gradient at most tenfold "
            "without norm, or by a factor of 2 or more with one",
            effects=(
                Effect("change without norm (powers of ten)", lambda e: _dependence(e, "none"), above=1),
                Effect("change with BN (powers of ten)", lambda e: _dependence(e, "bn"), above=-0.3, below=0.3),
                Effect("change with GN (powers of ten)", lambda e: _dependence(e, "gn"), above=-0.3, below=0.3),
            ),
        ),
        Claim(
            id="signals-vanishing",
            statement="Without a norm and without He's weights gradients vanish with depth; with a norm they do not.",
            source="Ioffe & Szegedy 2015; He et al. 2015, arXiv:1502.01852 (initial weights)",
            published="-",
            refuted="without norm the first layer's gradient is a tenth of the last one's or more, or with one or less",
            effects=(
                Effect("first over last, none (powers of ten)", lambda e: _decades(e, "none", "lecun"), below=-1),
                Effect("first over last, BN (powers of ten)", lambda e: _decades(e, "bn", "lecun"), above=-1),
                Effect("first over last, GN (powers of ten)", lambda e: _decades(e, "gn", "lecun"), above=-1),
            ),
        ),
        Claim(
            id="signals-bn-explodes",
            statement="Before training, BN itself makes the gradients of a deep network without shortcuts explode.",
            source="Yang et al. 2019, A Mean Field Theory of Batch Normalization, abstract",
            published="-",
            refuted="the first layer's gradient is not larger than the last one's",
            effects=(Effect("first over last, BN (powers of ten)", lambda e: _decades(e, "bn", "he"), above=0),),
            note="Their theory is of wide fully connected layers, without pooling.",
        ),
        Claim(
            id="signals-shift",
            statement="With BN the distributions of the layers' inputs move less during training.",
            source="Ioffe & Szegedy 2015, abstract (internal covariate shift)",
            published="-",
            refuted="they move at least as much as without norm",
            effects=(
                Effect(
                    "shift an epoch without norm over BN's (times)",
                    lambda e: _mean(e, "shift", LAYERS, "none", "curves") / _mean(e, "shift", LAYERS, "bn", "curves"),
                    above=1,
                ),
            ),
            note="That this is why BN helps is disputed by Santurkar et al. 2018.",
        ),
        Claim(
            id="signals-bottom-up",
            statement="Layers converge to their final representations from the bottom up.",
            source="Raghu et al. 2017, SVCCA, abstract",
            published="-",
            refuted="in one of the networks the first four layers are on their way no nearer their end than the last",
            effects=tuple(
                Effect(
                    f"similarity to the end, first less last four, {name} (0 to 1)",
                    partial(_order, norm=norm),
                    above=0,
                )
                for norm, name in (("none", "none"), ("bn", "BN"), ("gn", "GN"))
            ),
            note="They compare by SVCCA, which ignores more than the linear CKA used here.",
        ),
        Claim(
            id="signals-fewer-steps",
            statement="BN reaches the accuracy of the network without norm in fewer steps.",
            source="Ioffe & Szegedy 2015, abstract",
            published="14 times fewer steps, at a larger learning rate",
            refuted="at one of the two learning rates it takes as many or more",
            effects=(
                Effect("steps without norm over BN's, same rate (times)", lambda e: _speedup(e, "he"), above=1),
                Effect(
                    "steps without norm over BN's, 5 x rate (times)", lambda e: _speedup(e, "he, 5 x rate"), above=1
                ),
            ),
        ),
        Claim(
            id="signals-gn-time",
            statement="A step with GN takes longer than one with BN.",
            source="Detectron, projects/GN (the authors' code)",
            published="Mask R-CNN, R-50: 0.897 s a step with fixed BN, 1.017 s with GN: 1.13 times",
            refuted="GN's training time is not above BN's",
            effects=(
                Effect("GN's training time over BN's, of each epoch (times)", time_ratio, above=1, over="epochs"),
            ),
            note="The interval is over epochs, not seeds, which may be trained as one network. Of the CPU at small "
            "scale, where other runs share the machine; Detectron's BN has fixed statistics.",
        ),
    ),
)
