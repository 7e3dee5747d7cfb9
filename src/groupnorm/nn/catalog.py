"""One row per normalisation: how it is written, what it shares, where it comes from and when to use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from groupnorm.errors import divisors
from groupnorm.sets import SharedSet, batch_set, group_set, instance_set, layer_set

MAX_GROUPS = 32
"""The number of groups of the paper, and the most that the spec "gn" uses."""


@dataclass(frozen=True)
class Norm:
    """A normalisation of the catalog.

    Attributes:
        spec: how the norm is written on the command line and in :func:`groupnorm.norm_layer`.
        title: its name in the literature.
        paper: authors, year and arXiv number.
        axes: what shares a mean and a variance, in words.
        shared: the same as data, for an input of ``num_channels``; None when nothing is normalised.
        drawn: the set that the picture shows, for the six channels of the paper's Figure 2.
        advice: when to use it, in one line.
    """

    spec: str
    title: str
    paper: str
    axes: str
    shared: Callable[[int], SharedSet | None]
    drawn: SharedSet | None
    advice: str


def default_groups(num_channels: int) -> int:
    """Groups that the spec "gn" uses: 32, or the largest divisor of ``num_channels`` up to 32."""
    return max((d for d in divisors(num_channels) if d <= MAX_GROUPS), default=1)


CATALOG: dict[str, Norm] = {
    row.spec: row
    for row in (
        Norm(
            "bn",
            "Batch Normalization",
            "Ioffe & Szegedy 2015, arXiv:1502.03167",
            "each channel, over all samples and positions",
            lambda c: batch_set(),
            batch_set(),
            "Batches of 16 or more that look alike in training and at test time.",
        ),
        Norm(
            "gn",
            "Group Normalization",
            "Wu & He 2018, arXiv:1803.08494",
            "each sample and group of channels, over all positions",
            lambda c: group_set(default_groups(c)),
            group_set(2),
            "Small batches, and wherever the batch must not matter. gn:8 sets groups, gn:c16 channels a group.",
        ),
        Norm(
            "ln",
            "Layer Normalization",
            "Ba, Kiros & Hinton 2016, arXiv:1607.06450",
            "each sample, over all channels and positions",
            lambda c: layer_set(),
            layer_set(),
            "Recurrent networks and transformers; in convolutional ones GN is usually better.",
        ),
        Norm(
            "in",
            "Instance Normalization",
            "Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022",
            "each sample and channel, over all positions",
            lambda c: instance_set(),
            instance_set(),
            "Style transfer and generators; undefined on 1x1 feature maps.",
        ),
        Norm(
            "none",
            "No normalisation",
            "-",
            "nothing",
            lambda c: None,
            None,
            "The control: what the network does on its own.",
        ),
    )
}
