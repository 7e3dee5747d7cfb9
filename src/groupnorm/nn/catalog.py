"""One row per normalisation: how it is written, what it shares, where it comes from and when to use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from groupnorm.errors import divisors
from groupnorm.nn.cross_iteration_batch_norm import CrossIterationBatchNorm
from groupnorm.nn.ghost_batch_norm import GhostBatchNorm
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.nn.sync_batch_norm import SyncBatchNorm
from groupnorm.sets import SharedSet, batch_set, ghost_set, group_set, instance_set, layer_set

MAX_GROUPS = 32
"""The number of groups of the paper, and the most that the spec "gn" uses."""

DRAWN = {"groups": 2, "examples": 3, "window": 3, "parts": 4}
"""The number of each kind in the pictures, whose cubes have six channels as those of the paper's Figure 2."""


@dataclass(frozen=True)
class Axes:
    """What the three axes of a set are called, in words and in pictures."""

    words: tuple[str, str, str]
    symbols: tuple[str, str, str]


FEATURES = Axes(("sample", "channel", "position"), ("N", "C", "H, W"))
WEIGHTS = Axes(("filter", "input channel", "position"), ("O", "I", "kH, kW"))


@dataclass(frozen=True)
class Norm:
    """A normalisation of the catalog.

    Attributes:
        spec: how the norm is written on the command line and in :func:`groupnorm.norm_layer`.
        layer: the class; of torch where torch's is right.
        title: its name in the literature.
        paper: authors, year and arXiv number.
        sets: what shares statistics, as data, given the number that the spec may carry.
        advice: when to use it, in one line.
        make: ``make(num_channels, number, **options)`` returns the module; None: it replaces no batch norm.
        number: what "spec:8" sets: "groups", "examples", "window" or "parts" (of the merged axis); "" for nothing.
        default: that number when the spec carries none; None is the default number of groups for the channels.
        of: whose axes the sets cut: feature maps, or the weights of a convolution.
        shares: what the elements of a set share.
        note: what the sets do not tell.
        activates: the norm contains its activation, and takes ``activation=False`` to leave it out.
        in_all: ``compare --norms all`` runs it.
    """

    spec: str
    layer: type[nn.Module]
    title: str
    paper: str
    sets: Callable[[int], tuple[SharedSet, ...]]
    advice: str
    make: Callable[..., nn.Module] | None
    number: str = ""
    default: int | None = None
    of: Axes = FEATURES
    shares: str = "mean and variance"
    note: str = ""
    activates: bool = False
    in_all: bool = True

    @property
    def axes(self) -> str:
        """What shares statistics, in words."""
        words = "; ".join(shared.words(*self.of.words) for shared in self.sets(self.default or DRAWN["groups"]))
        return f"{words}{self.note}" if words else "nothing"

    @property
    def drawn(self) -> tuple[SharedSet, ...]:
        """The sets that the pictures show."""
        return self.sets(DRAWN[self.number or "groups"])

    def resolve(self, num_channels: int, number: int | None = None) -> int:
        """The number of groups, examples or the window that a layer of ``num_channels`` takes."""
        return number or self.default or default_groups(num_channels)


def default_groups(num_channels: int) -> int:
    """Groups that the spec "gn" uses: 32, or the largest divisor of ``num_channels`` up to 32."""
    return max((d for d in divisors(num_channels) if d <= MAX_GROUPS), default=1)


def replacements() -> list[str]:
    """The specs that ``compare --norms all`` stands for: every norm that can replace a batch norm."""
    return [row.spec for row in CATALOG.values() if row.in_all] + ["ws+bn", "ws+gn"]


def catalog() -> list[Norm]:
    """The rows of the catalog: spec, class, title, paper, axes, advice.

    Example::

        >>> [row.spec for row in catalog() if "sample" in row.axes]
    """
    return list(CATALOG.values())


CATALOG: dict[str, Norm] = {
    row.spec: row
    for row in (
        Norm(
            "bn",
            nn.BatchNorm2d,
            "Batch Normalization",
            "Ioffe & Szegedy 2015, arXiv:1502.03167",
            lambda n: (batch_set(),),
            "Batches of 16 or more that look alike in training and at test time.",
            lambda c, n, **options: nn.BatchNorm2d(c, **options),
        ),
        Norm(
            "gn",
            GroupNorm,
            "Group Normalization",
            "Wu & He 2018, arXiv:1803.08494",
            lambda n: (group_set(n),),
            "Small batches, and wherever the batch must not matter. gn:8 sets groups, gn:c16 channels a group.",
            lambda c, n, **options: GroupNorm(n, c, **options),
            number="groups",
        ),
        Norm(
            "ln",
            GroupNorm,
            "Layer Normalization",
            "Ba, Kiros & Hinton 2016, arXiv:1607.06450",
            lambda n: (layer_set(),),
            "Recurrent networks and transformers; in convolutional ones GN is usually better.",
            lambda c, n, **options: GroupNorm(1, c, **options),
        ),
        Norm(
            "in",
            GroupNorm,
            "Instance Normalization",
            "Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022",
            lambda n: (instance_set(),),
            "Style transfer and generators; undefined on 1x1 feature maps.",
            lambda c, n, **options: GroupNorm(c, c, **options),
        ),
        Norm(
            "ghost",
            GhostBatchNorm,
            "Ghost Batch Normalization",
            "Hoffer, Hubara & Soudry 2017, arXiv:1705.08741",
            lambda n: (ghost_set(n),),
            "Very large batches that generalise badly: the noise of a small batch, ghost:16 samples at a time.",
            lambda c, n, **options: GhostBatchNorm(c, n, **options),
            number="examples",
            default=16,
        ),
        Norm(
            "cbn",
            CrossIterationBatchNorm,
            "Cross-Iteration Batch Normalization",
            "Yao et al. 2021, arXiv:2002.05712",
            lambda n: (batch_set(),),
            "Detection with few images per device and convolutions before the norms; needs groupnorm.wire_(model).",
            lambda c, n, **options: CrossIterationBatchNorm(c, **options),
            note=", of this and the 3 iterations before",
        ),
        Norm(
            "syncbn",
            SyncBatchNorm,
            "Synchronised Batch Normalization",
            "Peng et al. 2018 (MegDet), arXiv:1711.07240",
            lambda n: (batch_set(),),
            "Few images on each of many devices: batch norm over all of them. In one process it is bn.",
            lambda c, n, **options: SyncBatchNorm(c, **options),
            note=" of all processes",
            in_all=False,
        ),
        Norm(
            "none",
            nn.Identity,
            "No normalisation",
            "-",
            lambda n: (),
            "The control: what the network does on its own.",
            lambda c, n, **options: nn.Identity(),
            in_all=False,
        ),
    )
}
