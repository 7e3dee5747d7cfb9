"""What the catalog says of a normalisation: how it is written, what it shares, where it comes from, how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from groupnorm.errors import divisors
from groupnorm.sets import SharedSet

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


@dataclass(frozen=True, repr=False)
class Norm:
    """A normalisation of the catalog.

    Attributes:
        spec: how the norm is written on the command line and in :func:`groupnorm.norm_layer`.
        layer: the class; of torch where torch's is right.
        title: its name in the literature.
        paper: authors, year and arXiv number.
        sets: what shares statistics, as data, given the number that the spec may carry.
        advice: when to use it, in one line.
        make: ``make(num_channels, number, **options)`` returns the module; None: it is no layer, but a parametrization.
        number: what "spec:8" sets: "groups", "examples", "window" or "parts" (of the merged axis); "" for nothing.
        default: that number when the spec carries none; None is the default number of groups for the channels.
        of: whose axes the sets cut: feature maps, or the weights of a convolution.
        shares: what the elements of a set share.
        note: what the sets do not tell.
        own_statistics: its running statistics are not those that batch norm would evaluate with: they are of something
            else, or evaluation computes something else with them.
        prenormalizes: its running statistics are of an input that it has normalised itself before, so that those of
            another norm are of no use to it.
        restarts: the schedule begins anew with statistics of another norm, as :meth:`torch.nn.Module.load_state_dict`
            of the layer has it, whatever the count of batches.
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
    own_statistics: bool = False
    prenormalizes: bool = False
    restarts: bool = False
    activates: bool = False
    in_all: bool = True

    def __repr__(self) -> str:
        return f"Norm({self.spec!r}: {self.title}; {self.paper})"

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
