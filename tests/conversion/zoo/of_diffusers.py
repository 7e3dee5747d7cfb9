"""Autoencoders and UNets of diffusers: they have group norms, which become ours with other groups."""

from functools import partial

import torch

from conversion.zoo.network import Network

VAE = {"block_out_channels": (32, 64), "norm_num_groups": 16, "latent_channels": 4}
UPDOWN = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
UNET = {"sample_size": 16, "block_out_channels": (32, 64), "norm_num_groups": 16, "layers_per_block": 1}
CROSS = {**UNET, "cross_attention_dim": 16, "attention_head_dim": 8}
BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
CROSSED = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def image():
    return {"sample": torch.randn(1, 3, 32, 32)}


def noisy(channels=3):
    return {"sample": torch.randn(1, channels, 16, 16), "timestep": torch.tensor([3])}


def told(channels=4):
    return {**noisy(channels), "encoder_hidden_states": torch.randn(1, 5, 16)}


def film():
    return {"sample": torch.randn(1, 4, 2, 16, 16), "timestep": 3, "encoder_hidden_states": torch.randn(1, 5, 16)}


LEFT_OUT = {
    "UNets with resnet_time_scale_shift='ada_group'": "their AdaGroupNorm makes scale and shift from the time step: "
    "it is refused, as no other norm could take its place",
}

# Class, options, what makes its input.
TABLE = [
    ("AutoencoderKL", {**VAE, **UPDOWN}, image),
    (
        "AsymmetricAutoencoderKL",
        {**UPDOWN, "down_block_out_channels": (32, 64), "up_block_out_channels": (32, 64), "norm_num_groups": 16},
        image,
    ),
    (
        "AutoencoderKLTemporalDecoder",
        {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2},
        lambda: {**image(), "num_frames": 1},
    ),
    ("VQModel", {**UPDOWN, "block_out_channels": (32, 64), "norm_num_groups": 16}, image),
    ("UNet2DModel", {**UNET, **BLOCKS, "attention_head_dim": 8}, noisy),
    ("UNet2DConditionModel", {**CROSS, **CROSSED}, told),
    (
        "UNet3DConditionModel",
        {
            **CROSS,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        film,
    ),
    (
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (16, 16, 32, 32),
            "decode_block_out_channels": (16, 32, 32, 32),
            "num_layers": 1,
            "resolution": 32,
        },
        lambda: {"sample": torch.randn(1, 3, 9, 32, 32)},
    ),
]


def build(kind, options, inputs):
    import diffusers

    return getattr(diffusers, kind)(**options), inputs()


NETWORKS = [
    Network("diffusers", kind, partial(build, kind, options, inputs), "gn:8") for kind, options, inputs in TABLE
]
