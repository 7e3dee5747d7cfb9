"""One network of the zoo."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Network:
    """A network and what becomes of it.

    Attributes:
        library: the distribution it comes from.
        name: its name there.
        build: makes it with random weights, and an input at batch size 1: positional arguments or a mapping.
        to: the spec that its norms become.
    """

    library: str
    name: str
    build: Callable[[], tuple[nn.Module, Any]]
    to: str = "gn"

    @property
    def key(self) -> str:
        """Library and name."""
        return f"{self.library}:{self.name}"
