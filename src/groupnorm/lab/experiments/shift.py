"""Test images that look unlike the training images: less contrast, noise, blur; and batch norm told of the shift.

``groupnorm run shift --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 9 minutes on two cores; Fashion-MNIST with the severities of CIFAR-10-C: error on clean images/contrast 5/noise
  5/blur 5 BN 18.8/89.1/35.2/27.2, GN 21.1/38.2/23.5/25.6, LN 23.7/48.1/25.7/29.1, none 18.5/54.2/19.3/22.6; with the
  statistics of 512 test images BN has 67.4 under contrast 5, of 2 images 77.1.
- full: weeks of eight GPUs; ResNet-50 on ImageNet with the severities of ImageNet-C: accuracy on ImageNet-C at severity
  5, not adapted: ResNet-50 with BN 18.0, with GN 30.6 (SAR).

Networks are trained as ever. After the last epoch each is tested on corrupted validation images. Batch norm is also
tested "adapted": with the statistics of the test batch in place of the running ones, at several sizes of that batch.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from groupnorm.lab.data.source import permutation
from groupnorm.lab.experiments.corruptions import CORRUPTIONS, corrupt
from groupnorm.lab.experiments.framework.claim import Claim, Effect
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.framework.experiment import Experiment, Scale, narrow
from groupnorm.lab.experiments.framework.plots import over
from groupnorm.lab.experiments.imagenet import IMAGENET
from groupnorm.lab.regimes.images import ImageTraining

TEST_BATCHES = (1, 2, 8, 32, 512)
"""Images of a test batch that share statistics."""

_READ = 512  # images corrupted together; every test batch divides it


class ShiftTraining(ImageTraining):
    """Tests the trained network on corrupted images.

    After the last epoch, ``"contrast 5"`` is the error under that corruption, and ``"contrast 5 adapted 32"`` the one
    of batch norm with the statistics of test batches of 32, as is ``"clean adapted 32"``.

    Options: ``white``, the largest value that a stored image may have; ``corruptions``, key of
    :data:`groupnorm.lab.experiments.corruptions.SEVERITIES`; ``severities``, a list of 1 to 5, of which the last is the
    one that batch norm is adapted to.
    """

    stackable = True
    parallel = True

    def measure(self) -> dict[str, float]:
        """Also the errors under corruption, in percent."""
        return super().measure() | (self._shifted() if self.finished else {})

    def _shifted(self) -> dict[str, float]:
        # In a fixed order of their own: images on disk lie by class, and a test batch of one class is another question.
        order = permutation(len(self.dataset.val_labels))
        adapted = adapt(self.model)
        wrong: Counter[str] = Counter()
        self.model.eval()
        with torch.inference_mode():
            for place, chosen in enumerate(order.split(_READ)):
                labels = self.dataset.val_labels[chosen]
                for name, inputs in self._conditions(self.dataset.val_images[chosen], place):
                    if name != "clean":
                        wrong[name] += self._wrong(self.model, inputs, labels, _READ)
                    if adapted is not None and name in ("clean", f"contrast {self.cell.options['severities'][-1]}"):
                        for size in TEST_BATCHES:
                            wrong[f"{name} adapted {size}"] += self._wrong(adapted, inputs, labels, size)
        return {name: 100 * count / len(order) for name, count in wrong.items()}

    def _conditions(self, stored: Tensor, place: int) -> Iterator[tuple[str, Tensor]]:
        """What the network is shown of stored images, as they are and under each corruption."""
        white = self.cell.options["white"]
        images = stored.to(self.device).float() / white
        yield "clean", self.inputs(images * white)
        for severity in self.cell.options["severities"]:
            for name in CORRUPTIONS:
                noise = torch.Generator().manual_seed(1_000 * place + severity)
                changed = corrupt(images, name, severity, self.cell.options["corruptions"], noise)
                yield f"{name} {severity}", self.inputs(changed * white)

    def _wrong(self, model: nn.Module, inputs: Tensor, labels: Tensor, size: int) -> int:
        found = []
        for part in inputs.split(size):
            with self.autocast():
                found.append(model(part).argmax(1).cpu())
        return int((torch.cat(found) != labels).sum())


def adapt(model: nn.Module) -> nn.Module | None:
    """A copy in evaluation mode whose batch norms use the statistics of the batch at hand; None if it has none."""
    adapted = copy.deepcopy(model).eval()
    norms = [module for module in adapted.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    return adapted if norms else None


def draw(evidence: Evidence) -> Figure:
    """Error over the severity of each corruption, and batch norm's over the size of an adapted test batch."""
    table = evidence.table
    severities = table["severities"].iloc[0]
    panels = {}
    for name in CORRUPTIONS:
        shifted = [_rows(table, f"{name} {severity}", severity) for severity in severities]
        panels[name] = pd.concat([_rows(table, "error", 0), *shifted])
    hardest = f"contrast {severities[-1]}"
    adapted, others = table[table["norm"] == "bn"], table[table["norm"] != "bn"]
    panels[told := f"{hardest}, BN with the test batch's statistics"] = pd.concat(
        part
        for size in TEST_BATCHES
        for part in (_rows(adapted, f"{hardest} adapted {size}", size), _rows(others, hardest, size))
    )
    return over(
        evidence,
        "x",
        panels,
        title="Error on test images unlike the training images",
        x_name={**dict.fromkeys(CORRUPTIONS, "severity (0: none)"), told: "images of the test batch"},
        log_x=[told],
    )


def _rows(table: pd.DataFrame, measure: str, x: float) -> pd.DataFrame:
    return table[["family", "seed"]].assign(x=x, error=table.get(measure, math.nan))


def _harm(evidence: Evidence, norm: str) -> Any:
    """How far the error rises from clean images to the least contrast, by seed."""
    return evidence.at("contrast 5", family=norm) - evidence.at(family=norm)


FASHION: dict[str, Any] = {
    "dataset": "fashion-mnist",
    "model": "resnet-tiny",
    "norms": narrow("bn", "gn", "ln", "none"),
    "batch_sizes": (32,),
    "learning_rate": 0.05,
    "seeds": 5,
    "epochs": 5,
    "limit_train": 4000,
    "limit_val": 1024,
    "task": "groupnorm.lab.experiments.shift:ShiftTraining",
}
SMOKE: dict[str, Any] = {
    "dataset": "digits",
    "image_size": 16,  # so that one image alone has a variance in the last maps
    "norms": narrow("bn", "gn"),
    "seeds": 2,
    "epochs": 1,
    "limit_train": 64,
    "limit_val": 32,
}
CIFAR_C = {"corruptions": "cifar10-c", "white": 255}

EXPERIMENT = Experiment(
    name="shift",
    head=str(__doc__),
    title="Test images unlike the training images",
    question="How much does each norm lose when test images have less contrast, noise or blur, and do the statistics "
    "of the test batch bring batch norm back?",
    source="Hendrycks & Dietterich 2019, arXiv:1903.12261; Niu et al. 2023 (SAR), arXiv:2302.12400",
    smoke=Scale(
        arms={"images": [FASHION | SMOKE | {"options": {**CIFAR_C, "white": 16, "severities": [5]}}]},
    ),
    small=Scale(
        arms={"images": [FASHION | {"options": {**CIFAR_C, "severities": [1, 3, 5]}}]},
    ),
    full=Scale(
        arms={
            "images": [
                IMAGENET
                | {
                    "norms": ("bn", "gn", "ln"),
                    "batch_sizes": (256,),
                    "normalization_batches": (32,),
                    "task": "groupnorm.lab.experiments.shift:ShiftTraining",
                    "options": {"corruptions": "imagenet-c", "white": 255, "severities": [1, 2, 3, 4, 5]},
                }
            ]
        },
    ),
    figure=draw,
    claims=(
        Claim(
            id="shift-bn-contrast",
            statement="BN loses more than GN when test images differ from training images, as by their contrast.",
            source="Niu et al. 2023 (SAR), README of the authors' code, ImageNet-C",
            published="accuracy at severity 5, not adapted: BN 18.0%, GN 30.6%",
            refuted="from clean images to contrast at severity 5, BN's error rises no more than GN's",
            effects=(Effect("BN's rise minus GN's (points)", lambda e: _harm(e, "bn") - _harm(e, "gn"), above=0),),
            note="The published numbers are of several corruptions together, and of networks with other training.",
        ),
        Claim(
            id="shift-bn-adapted",
            statement="The statistics of a large test batch bring BN back under contrast, those of a small one do not.",
            source="Schneider et al. 2020, arXiv:2006.16971, abstract; Niu et al. 2023 (SAR), abstract (small batches)",
            published="ResNet-50, mean corruption error on ImageNet-C: 76.7% with the running statistics, 62.2% with "
            "those of the test images",
            refuted="with 512 images BN loses 5 points or more to clean images, or with 2 at most 5 more than with 512",
            effects=(
                Effect(
                    "BN's error with 512 images minus clean (points)",
                    lambda e: e.at("contrast 5 adapted 512", family="bn") - e.at(family="bn"),
                    below=5,
                ),
                Effect(
                    "BN's error with 2 images minus with 512 (points)",
                    lambda e: e.at("contrast 5 adapted 2", family="bn") - e.at("contrast 5 adapted 512", family="bn"),
                    above=5,
                ),
            ),
            note="The corruption keeps the mean of each image and shrinks the rest, which one scale and shift for each "
            "channel cannot undo altogether.",
        ),
    ),
)
