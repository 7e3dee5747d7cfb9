"""Networks of MONAI with batch norm, and with instance norm where that is its default; in two and three dimensions."""

from copy import deepcopy
from functools import partial

import torch

from conversion.zoo.network import Network

LIBRARY = "monai"
UNET = {"in_channels": 1, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}
DYN = {"in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "filters": [8, 16, 32]}
HEAD = {"channels": (8, 16), "strides": (2, 2)}
BASIC = {"in_channels": 1, "features": (8, 8, 16, 16, 32, 8)}
RESNET = {"block_inplanes": [8, 16, 32, 64], "n_input_channels": 1, "num_classes": 2}
TINY = {"init_features": 16, "growth_rate": 8, "in_channels": 1, "out_channels": 2}
SE = {"in_channels": 1, "num_classes": 2}

LEFT_OUT = {
    "HoVerNet": "takes images of 256 by 256 pixels alone, and half a minute for one",
    "UNETR, SwinUNETR, Restormer, AutoencoderKL, DiffusionModelUNet": "need einops, which MONAI does not install",
    "GlobalNet": "its last layer starts at zero, so that no gradient reaches a norm in the first step",
    "CellSamWrapper": "needs segment_anything, which MONAI does not install",
}

# Name, class, options, the size of the input (channels and sides) or of each of its inputs.
TABLE = [
    ("UNet, 2D, batch", "UNet", {"spatial_dims": 2, "norm": "BATCH", **UNET}, (1, 32, 32)),
    (
        "UNet, 3D, batch, residual",
        "UNet",
        {"spatial_dims": 3, "norm": "BATCH", "num_res_units": 2, **UNET},
        (1, 16, 16, 16),
    ),
    ("UNet, 3D", "UNet", {"spatial_dims": 3, **UNET}, (1, 16, 16, 16)),
    ("AttentionUnet, 3D", "AttentionUnet", {"spatial_dims": 3, **UNET}, (1, 16, 16, 16)),
    ("AutoEncoder, 2D, batch", "AutoEncoder", {"spatial_dims": 2, "norm": "BATCH", **UNET, **HEAD}, (1, 32, 32)),
    (
        "VarAutoEncoder, 2D",
        "VarAutoEncoder",
        {"spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1, "latent_size": 4, **HEAD},
        (1, 32, 32),
    ),
    ("BasicUNet, 3D", "BasicUNet", {"spatial_dims": 3, **BASIC}, (1, 32, 32, 32)),
    ("BasicUNet, 2D, batch", "BasicUNet", {"spatial_dims": 2, "norm": "batch", **BASIC}, (1, 32, 32)),
    ("BasicUNetPlusPlus, 2D", "BasicUNetPlusPlus", {"spatial_dims": 2, **BASIC}, (1, 32, 32)),
    ("DynUNet, 3D", "DynUNet", {"spatial_dims": 3, "upsample_kernel_size": [2, 2], **DYN}, (1, 16, 16, 16)),
    (
        "DynUNet, 2D, batch",
        "DynUNet",
        {"spatial_dims": 2, "upsample_kernel_size": [2, 2], "norm_name": "batch", **DYN},
        (1, 32, 32),
    ),
    ("SegResNet, 3D, batch", "SegResNet", {"norm": "batch"}, (1, 16, 16, 16)),
    ("SegResNetDS, 3D", "SegResNetDS", {"init_filters": 8}, (1, 16, 16, 16)),
    (
        "SegResNetDS2, 2D, instance",
        "SegResNetDS2",
        {"spatial_dims": 2, "init_filters": 8, "norm": "instance"},
        (1, 32, 32),
    ),
    ("VNet, 3D", "VNet", {}, (1, 16, 16, 16)),
    ("VNet, 2D", "VNet", {"spatial_dims": 2, "dropout_dim": 2}, (1, 32, 32)),
    ("HighResNet, 3D", "HighResNet", {}, (1, 16, 16, 16)),
    ("AHNet, 3D", "AHNet", {"layers": (1, 1, 1, 1), "psp_block_num": 0}, (1, 32, 32, 32)),
    ("AHNet, 2D", "AHNet", {"layers": (1, 1, 1, 1), "spatial_dims": 2, "psp_block_num": 0}, (1, 64, 64)),
    ("DenseNet121, 2D", "DenseNet121", {"spatial_dims": 2, **TINY}, (1, 64, 64)),
    ("DenseNet121, 3D", "DenseNet121", {"spatial_dims": 3, **TINY}, (1, 32, 32, 32)),
    ("ResNet, basic, 3D", "ResNet", {"block": "basic", "layers": [1, 1, 1, 1], **RESNET}, (1, 32, 32, 32)),
    (
        "ResNet, bottleneck, 2D",
        "ResNet",
        {"block": "bottleneck", "layers": [1, 1, 1, 1], "spatial_dims": 2, **RESNET},
        (1, 64, 64),
    ),
    ("SEResNet50, 2D", "SEResNet50", {"spatial_dims": 2, **SE}, (1, 64, 64)),
    ("SEResNeXt50, 2D", "SEResNeXt50", {"spatial_dims": 2, **SE}, (1, 64, 64)),
    ("SENet154, 2D, short", "SENet154", {"spatial_dims": 2, "layers": (1, 1, 1, 1), **SE}, (1, 64, 64)),
    ("EfficientNetBN b0, 2D", "EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False}, (3, 64, 64)),
    (
        "EfficientNetBN b0, 3D",
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 3},
        (3, 32, 32, 32),
    ),
    (
        "FlexibleUNet b0, 2D",
        "FlexibleUNet",
        {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"},
        (3, 64, 64),
    ),
    (
        "FlexibleUNet resnet10, 3D",
        "FlexibleUNet",
        {
            "in_channels": 1,
            "out_channels": 2,
            "backbone": "resnet10",
            "spatial_dims": 3,
            "decoder_channels": (32, 16, 8, 8, 8),
        },
        (1, 32, 32, 32),
    ),
    ("PatchDiscriminator, 2D", "PatchDiscriminator", {"spatial_dims": 2, "channels": 8, "in_channels": 1}, (1, 64, 64)),
    ("Classifier, 2D", "Classifier", {"in_shape": (1, 32, 32), "classes": 2, **HEAD}, (1, 32, 32)),
    ("Regressor, 2D", "Regressor", {"in_shape": (1, 32, 32), "out_shape": (1,), **HEAD}, (1, 32, 32)),
    ("Discriminator, 2D", "Discriminator", {"in_shape": (1, 32, 32), **HEAD}, (1, 32, 32)),
    ("Generator, 2D", "Generator", {"latent_shape": (12,), "start_shape": (8, 4, 4), **HEAD}, (12,)),
    (
        "RegUNet, 3D",
        "RegUNet",
        {"spatial_dims": 3, "in_channels": 2, "num_channel_initial": 8, "depth": 2},
        (2, 16, 16, 16),
    ),
    (
        "LocalNet, 3D",
        "LocalNet",
        {"spatial_dims": 3, "in_channels": 2, "num_channel_initial": 8, "extract_levels": (0, 1)},
        (2, 16, 16, 16),
    ),
    (
        "VoxelMorphUNet, 2D, instance",
        "VoxelMorphUNet",
        {
            "spatial_dims": 2,
            "in_channels": 2,
            "unet_out_channels": 8,
            "channels": (8, 8, 16, 16),
            "final_conv_channels": (8,),
            "norm": "instance",
        },
        (2, 32, 32),
    ),
    ("QuickNAT", "Quicknat", {"num_classes": 4, "num_filters": 8}, (1, 32, 32)),
    ("MILModel", "MILModel", {"num_classes": 2, "pretrained": False, "backbone": "resnet18"}, (2, 3, 64, 64)),
    ("TorchVisionFCModel resnet18", "TorchVisionFCModel", {}, (3, 224, 224)),
    ("DAF3D", "DAF3D", {"in_channels": 1, "out_channels": 2}, (1, 16, 16, 16)),
    (
        "SPADENet, 2D",
        "SPADENet",
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "label_nc": 2,
            "input_shape": (32, 32),
            "channels": [8, 16],
            "z_dim": 4,
        },
        [(2, 32, 32), (1, 32, 32)],
    ),
]


GROUPED = [
    ("MedNeXt, 3D", "MedNeXt", {"init_filters": 8}, (1, 32, 32, 32)),
    ("SegResNet, 3D", "SegResNet", {"init_filters": 16}, (1, 16, 16, 16)),
]


def build(kind, options, size):
    import monai.networks.nets as nets

    sizes = size if isinstance(size, list) else [size]
    # A copy, as some networks change the lists they are given.
    return getattr(nets, kind)(**deepcopy(options)), tuple(torch.randn(1, *size) for size in sizes)


NETWORKS = [
    Network(LIBRARY, name, partial(build, kind, options, size), to)
    for table, to in [(TABLE, "gn"), (GROUPED, "gn:4")]
    for name, kind, options, size in table
]
