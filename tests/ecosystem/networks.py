"""Small networks with batch norm that the ecosystem is tried on, and how far two ways to run them may lie apart."""

import timm
import torch
from torch import nn

import groupnorm
from tolerances import rounding

IMAGES = (4, 3, 8, 8)
LABELS = torch.arange(4)
CLASSES = 5


def images(*shape, dtype=torch.float32):
    """Of the usual shape if none is given; the same ones in every test."""
    return torch.randn(shape or IMAGES, dtype=dtype, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """A residual block without operations in place, so that backward hooks may sit on its layers."""

    def __init__(self, width, channels, *, bias=False):
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(width, channels, 1, bias=bias)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def residual(**options):
    return _started(nn.Sequential(Block(3, 8, **options), *_head(8)))


def activated():
    """With timm's BatchNormAct2d, norm and activation in one."""
    layers = timm.layers.ConvNormAct(3, 8, 3), timm.layers.ConvNormAct(8, 16, 3, act_layer=nn.SiLU)
    return _started(nn.Sequential(*layers, *_head(16)))


def fused(activation):
    """With our own norm and activation in one."""
    layers = nn.Conv2d(3, 8, 3), groupnorm.GroupNorm(2, 8, activation=activation), nn.Conv2d(8, 16, 3)
    return _started(nn.Sequential(*layers, groupnorm.GroupNorm(4, 16, activation=activation), *_head(16)))


def converted(model, spec):
    """``model`` with other norms, its schedules short enough to move within a test."""
    if spec != "bn":
        model = groupnorm.convert(model, spec, sample_input=images(dtype=next(model.parameters()).dtype))
    groupnorm.set_total_steps(model, 30)
    return model


def near(model, x, y):
    """How far two ways to compute ``y``, an output or a gradient, may lie apart: each layer's rounding added up."""
    return sum(1 for _ in model.modules()) * rounding(y.dtype, x, y)


def _head(channels):
    """From maps to classes."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


def _started(model):
    """Scales and shifts that are not 1 and 0."""
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model
