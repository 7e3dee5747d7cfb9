"""What passes through a network on one batch: each layer's output and its gradient."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """The output of a convolution as the next layer takes it: after norm, activation and pooling.

    Attributes:
        output: ``[n, ...]``.
        gradient: of the mean loss, of the same shape.
    """

    output: Tensor
    gradient: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean of each channel, ``[C]``, and standard deviation of all values."""
        channels = self.output.transpose(0, 1).flatten(1) if self.output.dim() > 2 else self.output.T
        return channels.mean(1), self.output.std(correction=0)

    def likeness(self) -> Tensor:
        """How alike each two of the images are to this layer: the centred Gram matrix ``[n, n]`` of length 1."""
        rows = self.output.flatten(1)
        rows = rows - rows.mean(0)
        gram = rows @ rows.T
        unit: Tensor = gram / gram.norm().clamp_min(1e-30)  # zero where the layer tells no two images apart
        return unit


def probe(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Layer]:
    """Show a network in training mode one batch.

    It happens to a copy, so that running statistics stay as they are.

    Args:
        model: a chain of convolutions, then linear layers.
        inputs: ``[n, C, H, W]``.
        labels: ``[n]``.

    Returns:
        One entry for each convolution, the first one first.
    """
    twin = copy.deepcopy(model).train()
    layers = [module for module in twin.modules() if isinstance(module, nn.Conv2d)]
    layers_after = [*layers[1:], next(module for module in twin.modules() if isinstance(module, nn.Linear))]
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        seen.append(args[0])

    for module in layers_after:
        module.register_forward_pre_hook(see)
    F.cross_entropy(twin(inputs).float(), labels).backward()
    return [Layer(output.detach().float(), _gradient(output).float()) for output in seen]


def similarity(first: Tensor, second: Tensor) -> float:
    """Linear CKA, 0 to 1, of two layers by their :meth:`Layer.likeness` (Kornblith et al. 2019, arXiv:1905.00414)."""
    return float((first * second).sum())


def _gradient(output: Tensor) -> Tensor:
    assert output.grad is not None
    return output.grad
