"""Converted networks exported to ONNX compute in onnxruntime what they compute here, at other batch sizes too."""

import io
from collections import Counter
from functools import partial

import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

import groupnorm
from ecosystem.networks import activated, converted, fused, images, near, residual

SPECS = ["gn", "ln", "in", "ws+gn", "frn", "brn"]


def export(model, x, **options):
    """``model``, exported in evaluation mode for any batch size."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model.eval(), (x,), dynamic_shapes=({0: batch},), verbose=False, **options)
    onnx.checker.check_model(program.model_proto)
    return program.model_proto


def operators(proto):
    return Counter(node.op_type for node in proto.graph.node)


def assert_computes(proto, model, shape):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    name = session.get_inputs()[0].name
    for batch in (1, 2, 5):
        x = images(batch, *shape)
        with torch.no_grad():
            want = model(x)
        got = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        torch.testing.assert_close(got, want, rtol=0, atol=near(model, x, want))


@pytest.mark.parametrize(("spec", "opset"), [*((spec, 21) for spec in SPECS), ("gn", 18), ("brn", 18), ("gn", None)])
def test_networks_of_each_norm(spec, opset):
    model = converted(residual(), spec)
    proto = export(model, images(), opset_version=opset)
    assert_computes(proto, model, (3, 8, 8))
    of_groups, native = spec not in ("frn", "brn"), opset is not None and opset >= 21
    found = operators(proto)
    assert found["GroupNormalization"] == (2 if of_groups and native else 0)
    assert found["InstanceNormalization"] == (2 if of_groups and not native else 0)
    if of_groups and native:  # nothing is left that would standardise weights: they are stored as they are used
        assert set(found) == {"Conv", "GroupNormalization", "Relu", "Add", "ReduceMean", "Reshape", "Gemm"}


@pytest.mark.parametrize(
    ("build", "opset"),
    [(activated, 21), *((partial(fused, a), opset) for a, opset in (("relu", 18), ("silu", 21), ("gelu", 18)))],
    ids=["timm", "relu", "silu", "gelu"],
)
def test_activations_in_the_norm(build, opset):
    model = converted(build(), "gn") if build is activated else build()
    proto = export(model, images(), opset_version=opset)
    assert_computes(proto, model, (3, 8, 8))
    assert operators(proto)["GroupNormalization"] == (2 if opset == 21 else 0)


@pytest.mark.parametrize("shape", [(8,), (8, 2, 3, 4)])
@pytest.mark.parametrize("opset", [18, 21])
def test_inputs_of_every_rank_and_norms_without_scale_or_shift(shape, opset):
    norms = (groupnorm.GroupNorm(2, 8, **options) for options in ({}, {"affine": False}, {"bias": False}))
    model = nn.Sequential(*(layer for norm in norms for layer in (norm, nn.Tanh())))
    for p in model.parameters():
        nn.init.normal_(p)
    assert_computes(export(model, images(2, *shape), opset_version=opset), model, shape)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # of the checks
def test_the_exporter_of_torchscript_takes_the_layer_alone(activation):
    """It hands the forward pass the defaults of all options by their positions."""
    norm, x, file = groupnorm.GroupNorm(2, 8, activation=activation).eval(), images(2, 8, 3, 4), io.BytesIO()
    for p in norm.parameters():
        nn.init.normal_(p)
    torch.onnx.export(norm, (x,), file, dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file.getvalue())
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(got, norm(x).detach(), rtol=0, atol=near(norm, x, got))


def test_resnet18():
    model = groupnorm.convert(torchvision.models.resnet18(num_classes=10), "gn")
    proto = export(model, images(2, 3, 32, 32), opset_version=21)
    found = operators(proto)
    assert found["GroupNormalization"] == 20
    assert not found["InstanceNormalization"]
    assert_computes(proto, model, (3, 32, 32))
