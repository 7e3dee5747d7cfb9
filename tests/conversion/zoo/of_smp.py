"""Every decoder of segmentation-models-pytorch, and encoders of each origin: its own, torchvision's, timm's."""

from functools import partial

import torch

from conversion.zoo.network import Network

PAIRS = [
    ("unet", "resnet18"), ("unet", "efficientnet-b0"), ("unet", "tu-mobilenetv3_small_100"), ("unet", "densenet121"),
    ("unet", "vgg11_bn"), ("unet", "inceptionv4"), ("unet", "mobileone_s0"), ("unet", "se_resnet50"),
    ("unetplusplus", "resnet18"), ("unetplusplus", "timm-efficientnet-b0"), ("manet", "mobilenet_v2"),
    ("linknet", "resnet18"),
    ("linknet", "timm-skresnet18"), ("fpn", "efficientnet-b0"), ("fpn", "dpn68"), ("pspnet", "resnet18"),
    ("pspnet", "xception"), ("pan", "mobilenet_v2"), ("pan", "tu-regnety_002"), ("deeplabv3", "resnet18"),
    ("deeplabv3", "mobilenet_v2"), ("deeplabv3plus", "efficientnet-b0"), ("deeplabv3plus", "tu-resnet18"),
    ("upernet", "resnet18"), ("upernet", "mit_b0"), ("segformer", "mit_b0"), ("segformer", "mobilenet_v2"),
    ("dpt", "tu-vit_tiny_patch16_224"),
]  # fmt: skip


def build(decoder, encoder):
    import segmentation_models_pytorch as smp

    options = {"dynamic_img_size": True} if decoder == "dpt" else {}
    model = smp.create_model(decoder, encoder_name=encoder, encoder_weights=None, **options)
    side = 256 if decoder == "pan" else 64  # with less, a norm of one channel is left one position
    return model, (torch.randn(1, 3, side, side),)


def instance():
    """Instance norms in the decoder, batch norms in the encoder."""
    import segmentation_models_pytorch as smp

    model = smp.Unet("resnet18", encoder_weights=None, decoder_use_norm={"type": "instancenorm", "affine": True})
    return model, (torch.randn(1, 3, 64, 64),)


LEFT_OUT = {"decoders with in-place batch norm": "need inplace_abn, which the library does not install"}
LIBRARY = "segmentation-models-pytorch"
NETWORKS = [Network(LIBRARY, f"{decoder}, {encoder}", partial(build, decoder, encoder)) for decoder, encoder in PAIRS]
NETWORKS.append(Network(LIBRARY, "unet, resnet18, instance norm", instance))
