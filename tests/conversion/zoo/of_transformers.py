"""Vision networks of transformers with batch norm, also frozen, and those with group norms of their own; all small."""

from copy import deepcopy
from functools import partial

import torch

from conversion.zoo.network import Network

RESNET = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
STAGES = {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DETR = {
    "backbone_config": {**RESNET, "out_features": ["stage4"]}, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "num_queries": 10,
}  # fmt: skip
RT = {
    "encoder_hidden_dim": 32, "encoder_in_channels": [32, 64, 64], "encoder_ffn_dim": 64, "encoder_attention_heads": 2,
    "d_model": 32, "num_queries": 10, "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 64, "decoder_layers": 1,
    "decoder_attention_heads": 2, "num_denoising": 0,
}  # fmt: skip
RTBACK = {**STAGES, "model_type": "rt_detr_resnet", "layer_type": "basic"}
HGNET = {
    "model_type": "hgnet_v2", "embedding_size": 8, "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 32, 64],
    "stage_mid_channels": [8, 8, 16, 16], "stage_out_channels": [16, 32, 64, 64], "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2], "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1],
}  # fmt: skip
HGSTAGES = {**HGNET, "out_features": ["stage2", "stage3", "stage4"]}
DPT = {
    **VIT, "image_size": 64, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32],
    "fusion_hidden_size": 16, "use_batch_norm_in_fusion_residual": True,
}  # fmt: skip
BEIT = {**VIT, "image_size": 64, "auxiliary_channels": 16}

LEFT_OUT = {
    "GroundingDino, MMGroundingDino": "take text beside the image; their frozen batch norms are those of Detr",
    "Emu3VQVAE, PeVideo": "their group norms take a second argument, such as a mask, so that they are refused",
}

# Name, class, options of its configuration, the side of the input.
TABLE = [
    ("ResNetModel, bottleneck", "ResNetModel", RESNET, 64),
    ("ResNetModel, basic", "ResNetModel", {**RESNET, "layer_type": "basic"}, 64),
    (
        "RegNetModel, y",
        "RegNetModel",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 2, 1], "groups_width": 8},
        64,
    ),
    (
        "RegNetModel, x",
        "RegNetModel",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 64],
            "depths": [1, 1, 2, 1],
            "groups_width": 8,
            "layer_type": "x",
        },
        64,
    ),
    ("MobileNetV1Model", "MobileNetV1Model", {"depth_multiplier": 0.25}, 64),
    ("MobileNetV2Model", "MobileNetV2Model", {"depth_multiplier": 0.35}, 64),
    ("MobileNetV2ForSemanticSegmentation", "MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.35}, 64),
    (
        "EfficientNetModel",
        "EfficientNetModel",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        64,
    ),
    (
        "LevitModel",
        "LevitModel",
        {"image_size": 128, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]},
        128,
    ),
    (
        "MobileViTModel",
        "MobileViTModel",
        {"image_size": 64, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128]},
        64,
    ),
    (
        "MobileViTForSemanticSegmentation",
        "MobileViTForSemanticSegmentation",
        {
            "image_size": 64,
            "hidden_sizes": [48, 64, 80],
            "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128],
            "aspp_out_channels": 32,
        },
        64,
    ),
    ("MobileViTV2Model", "MobileViTV2Model", {"image_size": 64, "width_multiplier": 0.5}, 64),
    ("CvtModel", "CvtModel", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, 64),
    ("SwiftFormerModel", "SwiftFormerModel", {"depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 48]}, 64),
    ("TextNetModel", "TextNetModel", {"stem_out_channels": 16, "hidden_sizes": [16, 16, 24, 32, 48]}, 64),
    ("HGNetV2Backbone", "HGNetV2Backbone", HGNET, 64),
    ("PPLCNetBackbone", "PPLCNetBackbone", {"scale": 0.5}, 64),
    ("PPLCNetV3Backbone", "PPLCNetV3Backbone", {}, 64),
    (
        "SegformerForSemanticSegmentation",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 16, 32, 32],
            "num_attention_heads": [1, 1, 2, 2],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 32,
        },
        64,
    ),
    (
        "UperNetForSemanticSegmentation",
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {**RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            "hidden_size": 32,
            "auxiliary_channels": 16,
            "auxiliary_in_channels": 64,
        },
        64,
    ),
    ("BeitForSemanticSegmentation", "BeitForSemanticSegmentation", {**BEIT, "out_indices": [1, 2, 3, 4]}, 64),
    (
        "Data2VecVisionForSemanticSegmentation",
        "Data2VecVisionForSemanticSegmentation",
        {**BEIT, "out_indices": [0, 1, 2, 3]},
        64,
    ),
    ("DPTForDepthEstimation", "DPTForDepthEstimation", DPT, 64),
    ("DPTForSemanticSegmentation", "DPTForSemanticSegmentation", DPT, 64),
    ("DetrModel", "DetrModel", DETR, 64),
    (
        "DetrForSegmentation",
        "DetrForSegmentation",
        {
            **DETR,
            "d_model": 256,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "backbone_config": {**RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        },
        64,
    ),
    ("ConditionalDetrModel", "ConditionalDetrModel", DETR, 64),
    ("DabDetrModel", "DabDetrModel", {**{k: v for k, v in DETR.items() if k != "d_model"}, "hidden_size": 32}, 64),
    ("DeformableDetrModel", "DeformableDetrModel", {**DETR, "d_model": 64, "backbone_config": STAGES}, 64),
    ("TableTransformerModel", "TableTransformerModel", DETR, 64),
    ("RTDetrModel", "RTDetrModel", {**RT, "backbone_config": RTBACK}, 64),
    (
        "RTDetrModel, batch norms not frozen",
        "RTDetrModel",
        {**RT, "backbone_config": RTBACK, "freeze_backbone_batch_norms": False},
        64,
    ),
    ("RTDetrV2Model", "RTDetrV2Model", {**RT, "backbone_config": RTBACK}, 64),
    ("DFineModel", "DFineModel", {**RT, "backbone_config": HGSTAGES}, 64),
    ("Deimv2Model", "Deimv2Model", {**RT, "backbone_config": HGSTAGES}, 64),
    ("PPDocLayoutV2Model", "PPDocLayoutV2Model", {**RT, "backbone_config": HGSTAGES}, 64),
    (
        "PPDocLayoutV3Model",
        "PPDocLayoutV3Model",
        {
            **RT,
            "backbone_config": {**HGNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            "x4_feat_dim": 16,
        },
        64,
    ),
    (
        "VitMatteForImageMatting",
        "VitMatteForImageMatting",
        {
            "backbone_config": {
                **VIT,
                "model_type": "vitdet",
                "num_channels": 4,
                "image_size": 64,
                "out_features": ["stage4"],
            },
            "hidden_size": 32,
            "convstream_hidden_sizes": [8, 16, 24],
            "fusion_hidden_sizes": [32, 16, 16, 8],
        },
        64,
    ),
    (
        "VitPoseForPoseEstimation",
        "VitPoseForPoseEstimation",
        {
            "backbone_config": {**VIT, "model_type": "vitpose_backbone", "image_size": [64, 64], "out_indices": [4]},
            "use_simple_decoder": False,
            "num_labels": 4,
        },
        64,
    ),
    (
        "AlignVisionModel",
        "AlignVisionModel",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        64,
    ),
]
GROUPED = [
    (
        "BitModel",
        "BitModel",
        {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 4},
        64,
    ),
    ("PoolFormerModel", "PoolFormerModel", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 32, 64]}, 64),
]


def build(kind, options, side):
    import transformers

    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**deepcopy(options)))
    channels = getattr(getattr(model.config, "backbone_config", None), "num_channels", 3)
    return model, {"pixel_values": torch.randn(1, channels, side, side)}


NETWORKS = [
    Network("transformers", name, partial(build, kind, options, side), to)
    for table, to in [(TABLE, "gn"), (GROUPED, "gn:8")]
    for name, kind, options, side in table
]
