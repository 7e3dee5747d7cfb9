"""Forty networks of timm, each of another family."""

from functools import partial

import torch

from conversion.zoo.network import Network

NAMES = [
    "botnet26t_256", "cspresnet50", "densenet121", "dla34", "dpn48b", "efficientformer_l1", "efficientnet_b0",
    "efficientvit_b0", "ese_vovnet19b_dw", "fastvit_t8", "gernet_s", "ghostnet_100", "halonet26t", "hardcorenas_a",
    "hrnet_w18_small", "inception_resnet_v2", "lambda_resnet26t", "lcnet_050", "legacy_seresnet18", "levit_128s",
    "mixnet_s", "mnasnet_small", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobileone_s0", "regnety_002",
    "repghostnet_050", "repvgg_a0", "res2net50_26w_4s", "resnest14d", "rexnet_100", "selecsls42", "seresnet18",
    "skresnet18", "tf_efficientnetv2_b0", "tiny_vit_5m_224", "tinynet_e", "visformer_tiny", "vovnet39a", "xception41",
]  # fmt: skip
SIDES = {"botnet26t_256": 256, "halonet26t": 256, "lambda_resnet26t": 256, "inception_resnet_v2": 160}
FIXED = ("efficientformer", "fastvit", "levit", "tiny_vit", "visformer")  # take 224 pixels alone


def build(name):
    import timm

    side = SIDES.get(name, 224 if name.startswith(FIXED) else 96)
    return timm.create_model(name), (torch.randn(1, 3, side, side),)


NETWORKS = [Network("timm", name, partial(build, name)) for name in NAMES]
