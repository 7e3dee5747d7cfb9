"""Residual networks for small images: the default of `compare`, and the CIFAR family of He et al. 2016."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupnorm.lab.models.convolution import Conv2d

NormLayer = Callable[..., nn.Module]
"""``norm_layer(num_channels, apply_act=True)``, as :func:`groupnorm.norm_layer` returns it."""


def relu_after(norm: nn.Module) -> nn.Module:
    """The ReLU that follows a norm; nothing after one that contains its activation (FRN with TLU, EvoNorm)."""
    return nn.Identity() if getattr(norm, "activation", None) else nn.ReLU(inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each followed by a norm, and a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels: int, width: int, stride: int, norm_layer: NormLayer, project: bool) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = norm_layer(width)
        self.relu1 = relu_after(self.norm1)
        self.conv2 = Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm_layer(width, apply_act=False)
        self.shortcut: nn.Module
        if channels == width and stride == 1:
            self.shortcut = nn.Identity()
        elif project:
            self.shortcut = nn.Sequential(
                Conv2d(channels, width, 1, stride, bias=False), norm_layer(width, apply_act=False)
            )
        else:
            self.shortcut = PadShortcut(width - channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class PadShortcut(nn.Module):
    """Every ``stride``-th position, and zeros for the new channels: option A of He et al. 2016, section 4.2."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))


class SmallResNet(nn.Module):
    """A stem of one 3x3 convolution, stages that each halve the image, average pooling and a linear layer.

    Args:
        norm_layer: makes the norm for a number of channels.
        in_channels: channels of the images.
        num_classes: number of logits.
        widths: channels of each stage; all but the first stage halve the image.
        blocks: residual blocks of each stage.
        project: shortcuts that change shape are a 1x1 convolution with a norm (ImageNet style) instead of
            zero-padding (CIFAR style).

    Initialised as in Wu & He 2018, section 4.1: He normal (fan out), norm weights 1, but 0 in the last norm of
    each block, so that a block starts as its shortcut.
    """

    def __init__(
        self,
        norm_layer: NormLayer,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int],
        blocks: int,
        project: bool,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.norm = norm_layer(widths[0])
        self.relu = relu_after(self.norm)
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, width, stride, norm_layer, project))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights from the current random state."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock) and isinstance(weight := getattr(module.norm2, "weight", None), Tensor):
                nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.blocks(x)
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def resnet_tiny(norm_layer: NormLayer, in_channels: int, num_classes: int) -> SmallResNet:
    """Four stages of 16, 32, 64 and 128 channels, one block each: 8x8 images end at 1x1.

    An ImageNet ResNet in small. A batch norm at 1x1 has as many elements per statistic as images in the batch.
    """
    return SmallResNet(norm_layer, in_channels, num_classes, (16, 32, 64, 128), blocks=1, project=True)


def resnet20(norm_layer: NormLayer, in_channels: int, num_classes: int) -> SmallResNet:
    """ResNet-20 for CIFAR (He et al. 2016, section 4.2)."""
    return SmallResNet(norm_layer, in_channels, num_classes, (16, 32, 64), blocks=3, project=False)


def resnet32(norm_layer: NormLayer, in_channels: int, num_classes: int) -> SmallResNet:
    """ResNet-32 for CIFAR (He et al. 2016, section 4.2)."""
    return SmallResNet(norm_layer, in_channels, num_classes, (16, 32, 64), blocks=5, project=False)


def resnet56(norm_layer: NormLayer, in_channels: int, num_classes: int) -> SmallResNet:
    """ResNet-56 for CIFAR (He et al. 2016, section 4.2)."""
    return SmallResNet(norm_layer, in_channels, num_classes, (16, 32, 64), blocks=9, project=False)
