"""Models whose modules cannot be exchanged are refused by name, with the remedy."""

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.errors import ConversionError


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()


def quantised():
    return torch.ao.quantization.fuse_modules_qat(network().train(), [["0", "1"]])


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda: nn.DataParallel(network()), r"DataParallel.*convert \.module, and wrap it afterwards"),
        (lambda: nn.Sequential(nn.DataParallel(network())), r"^0 is .*DataParallel"),
        (lambda: torch.compile(network()), "before torch.compile, or its _orig_mod"),
        (lambda: torch.export.export(network(), (torch.randn(2, 3, 8, 8),)), "before it is exported"),
        (lambda: torch.export.export(network(), (torch.randn(2, 3, 8, 8),)).module(), "before it is exported"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8)), "parameters without a shape yet"),
    ],
)
def test_refused(wrap, message):
    with pytest.raises(ConversionError, match=message):
        groupnorm.plan(wrap())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_and_quantised_models_are_refused():
    with pytest.raises(ConversionError, match=r"before torch\.jit\.script"):
        groupnorm.convert_(torch.jit.trace(network(), torch.randn(2, 3, 8, 8)))
    with pytest.raises(ConversionError, match="before it is fused or quantised"):
        groupnorm.convert(quantised())


def test_distributed_models_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ConversionError, match=r"DistributedDataParallel.*convert \.module"):
            groupnorm.plan(nn.parallel.DistributedDataParallel(network()))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_networks_that_could_be_quantised_and_are_not_yet_are_plain(name):
    import torchvision

    model = getattr(torchvision.models.quantization, name)(weights=None, quantize=False).eval()
    plan = groupnorm.plan(model, "frozen")
    assert len(plan.of("replace")) == len(plan.rows) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(groupnorm.convert(model, plan)(x), model(x))
