"""Whole networks with group norms and random weights, at sizes that run in seconds on two cores, or on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from groupnorm.bench.diffusion import Decoder, UNet


class Network(NamedTuple):
    """A network and its input.

    Attributes:
        title: what it is, with the size of its input.
        library: that has it.
        make: builds it.
        sizes: of its inputs; random numbers.
        others: inputs that are no random numbers, placed after the first.
        devices: where it is measured.
    """

    title: str
    library: str
    make: Callable[[], nn.Module]
    sizes: Sequence[tuple[int, ...]]
    others: Callable[[], list[Tensor]] = list
    devices: Sequence[str] = ("cpu", "cuda")


def _decoder() -> nn.Module:
    vae = _diffusers().AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=4 * ("DownEncoderBlock2D",),
        up_block_types=4 * ("UpDecoderBlock2D",),
    )
    return cast(nn.Module, vae.decoder)


def _unet() -> nn.Module:
    unet = _diffusers().UNet2DConditionModel(
        block_out_channels=(128, 256, 512),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=256,
    )
    return cast(nn.Module, unet)


def _diffusers() -> Any:
    """The library, whose types are not known."""
    return importlib.import_module("diffusers")


def _resnet() -> nn.Module:
    from torchvision.models import resnet50

    return cast(nn.Module, resnet50(norm_layer=lambda channels: nn.GroupNorm(32, channels)))


NETWORKS = {
    "vae-decoder": Network(
        "VAE decoder of Stable Diffusion, to 128x128", "diffusers", _decoder, [(1, 4, 16, 16)], devices=["cpu"]
    ),
    "unet": Network(
        "conditional UNet of three levels, 2x32x32",
        "diffusers",
        _unet,
        [(2, 4, 32, 32), (2, 16, 256)],
        lambda: [torch.tensor([10, 700])],
        ["cpu"],
    ),
    "sd-vae-decoder": Network(
        "VAE decoder of Stable Diffusion, to 1024x1024", "torch", Decoder, [(1, 4, 128, 128)], devices=["cuda"]
    ),
    "sd-unet": Network(
        "UNet of Stable Diffusion, 2x64x64",
        "torch",
        UNet,
        [(2, 4, 64, 64), (2, 77, 768)],
        lambda: [torch.tensor([10, 700])],
        ["cuda"],
    ),
    "resnet50": Network("ResNet-50 with GroupNorm(32), 8x128x128", "torchvision", _resnet, [(8, 3, 128, 128)]),
}
"""By name. Those of a GPU are in plain PyTorch, since a machine with one may have no other library."""


def names_on(device: str) -> list[str]:
    """Of the networks that are measured on a device."""
    return [name for name, network in NETWORKS.items() if device in network.devices]


def absence(name: str) -> str:
    """Why a network cannot be built; "" where it can."""
    library = NETWORKS[name].library
    return "" if importlib.util.find_spec(library) else f"{library} is not installed: pip install {library}"


def build(name: str, dtype: torch.dtype, device: str) -> tuple[nn.Module, list[Tensor]]:
    """The network and its inputs, the same for the same name, dtype and device."""
    network = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Module.to(network.make(), device, dtype)  # that of diffusers warns of modules that are not there
        first, *rest = (torch.randn(size).to(device, dtype) for size in network.sizes)
    return model, [first, *(t.to(device) for t in network.others()), *rest]


def run(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The output, out of whatever a library wraps it in."""
    found: Any = model(*inputs)
    return cast(Tensor, found if isinstance(found, Tensor) else found[0])
