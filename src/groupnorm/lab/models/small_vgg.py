"""VGG-16 in small: thirteen convolutions in a row, without shortcuts, for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from groupnorm.lab.models.convolution import Conv2d
from groupnorm.lab.models.small_resnet import NormLayer, relu_after

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Of each stage of VGG-16 (Simonyan & Zisserman 2015, arXiv:1409.1556, table 1, column D)."""


def vgg(
    norm_layer: NormLayer,
    in_channels: int,
    num_classes: int,
    widths: Sequence[int],
    convolutions: Sequence[int] = CONVOLUTIONS,
) -> nn.Sequential:
    """Stages of 3x3 convolutions, each with a norm and a ReLU; after each stage the image is halved.

    VGG's three linear layers are one here, after average pooling: they hold most of its weights. The side of an image
    is rounded up when halved, so that 28x28 comes to the last stage as 2x2. Initialised as by the authors of GN
    (He normal, fan in; biases 0), so that the network trains without a norm, too.

    Args:
        norm_layer: makes the norm for a number of channels.
        in_channels: channels of the images.
        num_classes: number of logits.
        widths: channels of each stage.
        convolutions: number of them in each stage.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for width, count in zip(widths, convolutions, strict=True):
        for _ in range(count):
            norm = norm_layer(width)
            layers += [Conv2d(channels, width, 3, padding=1), norm, relu_after(norm)]
            channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model


def vgg_small(norm_layer: NormLayer, in_channels: int, num_classes: int) -> nn.Sequential:
    """VGG-16 with an eighth of its channels: 8, 16, 32, 64 and 64."""
    return vgg(norm_layer, in_channels, num_classes, (8, 16, 32, 64, 64))
