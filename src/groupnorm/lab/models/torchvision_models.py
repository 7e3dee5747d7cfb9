"""Networks of torchvision with a normalisation of choice. Images with one channel are repeated to three."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from groupnorm.lab.models.small_resnet import NormLayer, relu_after


class RepeatChannels(nn.Module):
    """Shows an image of one channel to a network that was made for three."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


def resnet(name: str) -> Callable[[NormLayer, int, int], nn.Module]:
    """A builder for torchvision's ResNet of this name (He et al. 2016), with the initial weights of Wu & He 2018.

    The last norm of each block starts at 0, the weights of the classifier with a standard deviation of 0.01 (Goyal et
    al. 2017, section 5.1).

    Where an addition follows, a norm that contains its activation comes without; elsewhere torchvision's ReLU follows
    that activation.
    """

    def build(norm_layer: NormLayer, in_channels: int, num_classes: int) -> nn.Module:
        import torchvision.models
        from torchvision.models.resnet import BasicBlock, Bottleneck

        model: nn.Module = getattr(torchvision.models, name)(norm_layer=norm_layer, num_classes=num_classes)
        for block in model.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                last = "bn3" if isinstance(block, Bottleneck) else "bn2"
                channels = getattr(block, last.replace("bn", "conv")).out_channels
                setattr(block, last, norm := norm_layer(channels, apply_act=False))
                if isinstance(weight := getattr(norm, "weight", None), Tensor):
                    nn.init.zeros_(weight)
                if block.downsample is not None:
                    block.downsample[1] = norm_layer(channels, apply_act=False)
        nn.init.normal_(model.get_submodule("fc").get_parameter("weight"), std=0.01)
        return _for_channels(model, in_channels)

    return build


def vgg16(norm_layer: NormLayer, in_channels: int, num_classes: int) -> nn.Module:
    """VGG-16 (Simonyan & Zisserman 2015) with a norm after each convolution, as torchvision's ``vgg16_bn``."""
    from torchvision.models.vgg import VGG, cfgs

    layers: list[nn.Module] = []
    channels = 3
    for width in cfgs["D"]:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        norm = norm_layer(width)
        layers += [nn.Conv2d(channels, width, 3, padding=1), norm, relu_after(norm)]
        channels = width
    return _for_channels(VGG(nn.Sequential(*layers), num_classes=num_classes), in_channels)


def _for_channels(model: nn.Module, in_channels: int) -> nn.Module:
    return model if in_channels == 3 else nn.Sequential(RepeatChannels(), model)
