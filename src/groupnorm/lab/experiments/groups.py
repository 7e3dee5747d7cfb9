"""How many groups, and how many channels in each (Table 3).

``groupnorm run groups --scale small``

- smoke: seconds; 64 images, too few to tell anything.
- small: 8 minutes on two cores; the digits, with a network of 64 and 128 channels: error with 64/32/16/8/4/2/1 groups
  2.0/1.7/1.7/2.0/2.0/2.0/2.1, with as many channels in each 1.9/1.9/2.0/1.7/1.7/1.4/2.3.
- full: months of eight GPUs; ResNet-50 on ImageNet, 32 images a worker, 100 epochs: error with 64/32/16/8/4/2/1 groups
  24.6/24.1/24.6/24.4/24.6/24.7/25.3, with as many channels in each 24.4/24.5/24.2/24.3/24.8/25.6/28.4.

Two arms. "groups" gives every layer the same number of groups; one group is layer norm. "channels" gives every group
the same number of channels, so that wide layers have more groups; one channel is instance norm.
"""

from __future__ import annotations

from collections.abc import Sequence
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

TABLE = "Wu & He 2018, Table 3"
COUNTS = (64, 32, 16, 8, 4, 2, 1)
SPECS = {"groups": "gn:{}", "channels": "gn:c{}"}
TITLES = {"groups": "groups of every layer", "channels": "channels of every group"}
FEW = {"seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 32}


def wide_resnet(norm_layer: NormLayer) -> nn.Module:
    """Two stages of 64 and 128 channels, one block each, for digits: all of the table's counts divide its channels."""
    return SmallResNet(norm_layer, 1, 10, (64, 128), blocks=1, project=True)


DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "model": f"{__name__}:{wide_resnet.__name__}",
    "batch_sizes": (32,),
    "epochs": 8,
    "seeds": 5,
}


def draw(evidence: Evidence) -> Figure:
    """Both halves of the table, a panel each."""
    table = evidence.table
    table = table.assign(count=table["norm"].str.extract(r"(\d+)$", expand=False).astype(int), family="gn")
    panels = {title: table[table["arm"] == arm] for arm, title in TITLES.items()}
    return over(evidence, "count", panels, title="How many groups", x_name="number", falling=True)


def _arms(shared: dict[str, Any], counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    return {arm: [shared | {"norms": tuple(spec.format(n) for n in counts)}] for arm, spec in SPECS.items()}


def _errors(evidence: Evidence, arm: str, counts: Sequence[int]) -> list[pd.Series[float]]:
    """The error by seed at each of these counts, lowest mean first."""
    found = [evidence.at(arm=arm, norm=SPECS[arm].format(n)) for n in counts]
    return sorted((errors for errors in found if len(errors)), key=lambda errors: float(errors.mean()))


def _single(evidence: Evidence, arm: str) -> pd.Series[float]:
    """How far the error with one group, or one channel, lies above that of the worst other count."""
    one, others = _errors(evidence, arm, [1]), _errors(evidence, arm, COUNTS[:-1])
    return one[0] - others[-1] if one and others else pd.Series(dtype=float)


def _breadth(evidence: Evidence, arm: str, least: int) -> pd.Series[float]:
    """How far the error of the worst count lies above that of the best, of those that are not less than ``least``."""
    errors = _errors(evidence, arm, [n for n in COUNTS if n >= least])
    return errors[-1] - errors[0] if errors else pd.Series(dtype=float)


EXPERIMENT = Experiment(
    name="groups",
    head=str(__doc__),
    title="How many groups",
    question="How does the error depend on the number of groups, or on the number of channels in each?",
    source=TABLE,
    smoke=Scale(arms=_arms(DIGITS | FEW, (64, 8, 1))),
    small=Scale(arms=_arms(DIGITS)),
    full=Scale(
        arms=_arms(IMAGENET | {"batch_sizes": (256,), "normalization_batches": (32,)}),
        last=5,
    ),
    figure=draw,
    claims=(
        Claim(
            id="one-group-worst",
            statement="A single group, which is LN, has the highest error of all numbers of groups.",
            source=TABLE,
            published="1 group 25.3%, 2 groups 24.7%, which is the worst of the others: +0.6 points",
            refuted="some other number of groups has the error of one group, or a higher one",
            effects=(
                Effect("error of 1 group minus the worst other (points)", lambda e: _single(e, "groups"), above=0),
            ),
        ),
        Claim(
            id="groups-broad-optimum",
            statement="The number of groups hardly matters as long as there are several.",
            source=TABLE,
            published="64 to 2 groups have 24.1% to 24.7%: 0.6 points",
            refuted="two of the numbers from 64 to 2 groups are 1 point or more apart",
            effects=(
                Effect("worst of 64 to 2 groups minus best (points)", lambda e: _breadth(e, "groups", 2), below=1),
            ),
            note="The largest of many differences is above zero by chance alone.",
        ),
        Claim(
            id="gn32-before-ln",
            statement="32 groups have a lower error than one, which is LN.",
            source=TABLE,
            published="32 groups 24.1%, 1 group 25.3%: 1.2 points",
            refuted="32 groups have the error of one, or a higher one",
            effects=(
                Effect(
                    "error of 1 group minus 32 (points)",
                    lambda e: e.at(arm="groups", norm="gn:1") - e.at(arm="groups", norm="gn:32"),
                    above=0,
                ),
            ),
        ),
        Claim(
            id="one-channel-worst",
            statement="A single channel in each group, which is IN, has the highest error of all sizes of groups.",
            source=TABLE,
            published="1 channel 28.4%, 2 channels 25.6%, which is the worst of the others: +2.8 points",
            refuted="some other size of groups has the error of one channel, or a higher one",
            effects=(
                Effect("error of 1 channel minus the worst other (points)", lambda e: _single(e, "channels"), above=0),
            ),
        ),
        Claim(
            id="channels-broad-optimum",
            statement="The number of channels in each group hardly matters as long as there are more than a few.",
            source=TABLE,
            published="64 to 4 channels have 24.2% to 24.8%: 0.6 points",
            refuted="two of the sizes from 64 to 4 channels are 1 point or more apart",
            effects=(
                Effect("worst of 64 to 4 channels minus best (points)", lambda e: _breadth(e, "channels", 4), below=1),
            ),
            note="The largest of many differences is above zero by chance alone.",
        ),
    ),
)
