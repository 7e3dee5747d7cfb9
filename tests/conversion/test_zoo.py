"""Every batch norm network of torchvision and forty of timm: what a conversion promises, on the real thing."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import groupnorm

MODELS = torchvision.models
WITHOUT = ("alexnet", "convnext", "mvit", "squeezenet", "swin", "vit")  # no batch norm
TOO_LARGE = ("regnet_y_128gf",)  # 645 million parameters, three times over
TIMM = [
    "botnet26t_256", "cspresnet50", "densenet121", "dla34", "dpn48b", "efficientformer_l1", "efficientnet_b0",
    "efficientvit_b0", "ese_vovnet19b_dw", "fastvit_t8", "gernet_s", "ghostnet_100", "halonet26t", "hardcorenas_a",
    "hrnet_w18_small", "inception_resnet_v2", "lambda_resnet26t", "lcnet_050", "legacy_seresnet18", "levit_128s",
    "mixnet_s", "mnasnet_small", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobileone_s0", "regnety_002",
    "repghostnet_050", "repvgg_a0", "res2net50_26w_4s", "resnest14d", "rexnet_100", "selecsls42", "seresnet18",
    "skresnet18", "tf_efficientnetv2_b0", "tiny_vit_5m_224", "tinynet_e", "visformer_tiny", "vovnet39a", "xception41",
]  # fmt: skip


def names(module):
    return [
        name
        for name in MODELS.list_models(module=module)
        if not name.startswith(WITHOUT) and name not in TOO_LARGE and ("vgg" not in name or "bn" in name)
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
    """With a target, as training needs one; "ssd" has a batch norm in its mobile form alone."""
    size = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
    target = {
        "boxes": torch.tensor([[5.0, 5.0, 60.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
        "keypoints": torch.ones(1, 17, 3),
    }
    model = MODELS.get_model(name, weights=None, weights_backbone=None, **size)
    return model, ([torch.rand(3, 96, 96)], [target])


def of_timm(name):
    side = {"botnet26t_256": 256, "halonet26t": 256, "lambda_resnet26t": 256, "inception_resnet_v2": 160}.get(name)
    fixed = name.startswith(("efficientformer", "fastvit", "levit", "tiny_vit", "visformer"))
    return timm.create_model(name), (torch.randn(1, 3, *2 * [side or (224 if fixed else 96)]),)


ALL = [
    *((classification, name) for name in names(MODELS)),
    *((segmentation, name) for name in names(MODELS.segmentation)),
    *((video, name) for name in names(MODELS.video)),
    *((detection, name) for name in names(MODELS.detection) if name != "ssd300_vgg16"),
    *((of_timm, name) for name in TIMM),
]


def tensors(output):
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [t for value in values if isinstance(value, (Tensor, dict, list, tuple)) for t in tensors(value)]


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(("kind", "name"), ALL, ids=[name for _, name in ALL])
def test_a_network_of_the_zoo(kind, name):
    torch.manual_seed(0)
    model, inputs = kind(name)
    before = {key: (t, t.detach().clone()) for key, t in model.state_dict(keep_vars=True).items()}
    parameters, text = list(model.parameters()), str(model)
    plan = groupnorm.plan(model, sample_input=inputs)
    report = groupnorm.convert_(model, plan)
    assert report.plan == plan
    assert len(plan.of("replace")) == sum(row.old.find("BatchNorm") >= 0 for row in plan.rows) > 0
    assert not plan.of("refuse")
    assert not [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    outputs = tensors(model.train()(*inputs))
    assert all(t.isfinite().all() for t in outputs)
    torch.autograd.backward(
        [t for t in outputs if t.requires_grad], [torch.randn_like(t) for t in outputs if t.requires_grad]
    )
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)
    report.undo()
    assert str(model) == text
    now = model.state_dict(keep_vars=True)
    assert now.keys() == before.keys()
    assert all(now[key] is t and torch.equal(t, value) for key, (t, value) in before.items())
