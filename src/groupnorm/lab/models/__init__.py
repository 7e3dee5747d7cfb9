"""The networks that `compare` trains, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.import_path import resolve
from groupnorm.lab.models import mlp, small_resnet, small_vgg, torchvision_models
from groupnorm.lab.models.marking import marking
from groupnorm.nn import norm_layer, wire_

__all__ = ["MODELS", "Model", "build", "find", "is_own"]

Builder = Callable[[Callable[..., nn.Module], int, int], nn.Module]


@dataclass(frozen=True)
class Model:
    """A network of the catalog: ``build(norm_layer, in_channels, num_classes)``, and a line about it."""

    name: str
    description: str
    build: Builder


MODELS: dict[str, Model] = {
    row.name: row
    for row in (
        Model("resnet-tiny", "4 stages of 16-128 channels, 12 norms; 8x8 ends at 1x1", small_resnet.resnet_tiny),
        Model("resnet20", "CIFAR ResNet, 3 stages of 16-64 channels, 19 norms", small_resnet.resnet20),
        Model("resnet32", "CIFAR ResNet, 3 stages of 16-64 channels, 31 norms", small_resnet.resnet32),
        Model("resnet56", "CIFAR ResNet, 3 stages of 16-64 channels, 55 norms", small_resnet.resnet56),
        Model("resnet18", "torchvision's ResNet-18, 20 norms", torchvision_models.resnet("resnet18")),
        Model("resnet50", "torchvision's ResNet-50, 53 norms", torchvision_models.resnet("resnet50")),
        Model("resnet101", "torchvision's ResNet-101, 104 norms", torchvision_models.resnet("resnet101")),
        Model("vgg-small", "VGG-16 with an eighth of its channels, 13 norms", small_vgg.vgg_small),
        Model("vgg16", "torchvision's VGG-16, 13 norms; images of 32x32 or more", torchvision_models.vgg16),
        Model("mlp-small", "perceptron with 2 hidden layers of 64 for rows of numbers, 2 norms", mlp.mlp_small),
    )
}


def is_own(name: str) -> bool:
    """Whether a model is the user's, and not one of this package."""
    return name not in MODELS and name.partition(":")[0].partition(".")[0] != __name__.partition(".")[0]


def find(name: str) -> Builder:
    """The builder of a network.

    Args:
        name: a key of :data:`MODELS`, or ``package.module:factory`` with ``factory(norm_layer)`` of the user's own,
            which knows the channels and classes of its data.

    Raises:
        UnknownNameError: the name is neither.
        ArgumentError: the user's module cannot be imported.
    """
    if name in MODELS:
        return MODELS[name].build
    if ":" not in name:
        raise UnknownNameError("model", name, [*MODELS, "package.module:factory"])
    factory = resolve(name, "model")

    def build_own(norm_layer: Callable[..., nn.Module], in_channels: int, num_classes: int) -> nn.Module:
        model = factory(norm_layer)
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                f"model {name!r} returned {type(model).__name__}; expected factory(norm_layer) to return a "
                f"torch.nn.Module"
            )
        return model

    return build_own


def build(name: str, norm: str, example: Tensor, num_classes: int) -> nn.Module:
    """Build a network with a normalisation, its weights drawn from torch's current random state.

    The norms that come from the factory are marked; see :mod:`groupnorm.lab.models.marking`.

    Args:
        name: as :func:`find` takes it.
        norm: spec of the normalisation; one that needs the convolution before it is connected with it.
        example: a few images ``[N, C, H, W]`` of the data.
        num_classes: number of logits.
    """
    model = find(name)(marking(norm_layer(norm)), example.shape[1], num_classes)
    wire_(model, example)
    return model
