"""A multilayer perceptron for rows of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

WIDTH = 64


class MLP(nn.Module):
    """Two hidden layers with a norm and ReLU each.

    Its layers are convolutions of 1x1 on maps of one position, so that every norm of the catalog finds the four axes
    that it expects: a batch norm is that of rows, and an instance norm has one element for each mean.

    Args:
        norm_layer: from channels to the norm.
        inputs: numbers in a row.
        outputs: numbers to predict.
        width: of the hidden layers.
    """

    def __init__(self, norm_layer: Callable[..., nn.Module], inputs: int, outputs: int, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[Any] = []
        for size in (inputs, width):
            layers += [nn.Conv2d(size, width, 1, bias=False), norm_layer(width), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x[:, :, None, None]).flatten(1))
        return y


def mlp_small(norm_layer: Callable[..., nn.Module], inputs: int, outputs: int) -> nn.Module:
    """The perceptron with 64 channels."""
    return MLP(norm_layer, inputs, outputs)
