"""Every network of torchvision that has batch norms: classification, segmentation, detection, video."""

from functools import partial

import torch
import torchvision

from conversion.zoo.network import Network

MODELS = torchvision.models
WITHOUT = ("alexnet", "convnext", "mvit", "squeezenet", "ssd300", "swin", "vit")  # no batch norm
LEFT_OUT = {"regnet_y_128gf": "645 million parameters, which a test holds three times"}


def names(module):
    return [
        name
        for name in MODELS.list_models(module=module)
        if not name.startswith(WITHOUT) and name not in LEFT_OUT and ("vgg" not in name or "bn" in name)
    ]


def classification(name):
    side = {"inception_v3": 299, "maxvit_t": 224}.get(name, 64)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return MODELS.get_model(name, weights=None, **options), (torch.randn(1, 3, side, side),)


def segmentation(name):
    return MODELS.get_model(name, weights=None, weights_backbone=None), (torch.randn(1, 3, 64, 64),)


def video(name):
    side, frames = (224, 16) if name == "s3d" else (64, 8)
    return MODELS.get_model(name, weights=None), (torch.randn(1, 3, frames, side, side),)


def detection(name):
    """With a target, as training needs one."""
    size = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
    target = {
        "boxes": torch.tensor([[5.0, 5.0, 60.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
        "keypoints": torch.ones(1, 17, 3),
    }
    model = MODELS.get_model(name, weights=None, weights_backbone=None, **size)
    return model, ([torch.rand(3, 96, 96)], [target])


def frozen():
    """A detector as it is trained from pretrained weights: the batch norms of its backbone are frozen."""
    backbone = MODELS.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    body = MODELS.detection.backbone_utils._resnet_fpn_extractor(backbone, trainable_layers=3)
    model = MODELS.detection.FasterRCNN(body, num_classes=2, min_size=96, max_size=128)
    return model, detection("ssdlite320_mobilenet_v3_large")[1]


NETWORKS = [
    Network("torchvision", name, partial(kind, name))
    for kind, module in [
        (classification, MODELS),
        (segmentation, MODELS.segmentation),
        (video, MODELS.video),
        (detection, MODELS.detection),
    ]
    for name in names(module)
]
NETWORKS.append(Network("torchvision", "FasterRCNN, frozen resnet18", frozen))
