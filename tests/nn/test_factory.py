"""From a spec to a layer, alone and inside the models of torchvision and timm."""

import pickle
import re

import pytest
import timm
import torch
import torchvision
from torch import nn

from agreement import assert_agrees, make_case
from groupnorm import GroupNorm, norm_layer
from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.functional import ACTIVATIONS
from groupnorm.sets import group_set

SPECS = ["bn", "gn", "gn:8", "gn:c16", "ln", "in", "none"]


@pytest.mark.parametrize(
    ("spec", "channels", "groups"),
    [
        *[("gn", c, g) for c, g in ((1, 1), (16, 16), (24, 24), (30, 30), (31, 31), (34, 17), (37, 1))],
        *[("gn", c, g) for c, g in ((40, 20), (64, 32), (96, 32), (256, 32), (2048, 32))],
        *[("gn:8", c, 8) for c in (16, 24, 64, 256)],
        *[("gn:c16", c, c // 16) for c in (16, 64, 256)],
        ("gn:5", 30, 5),
        ("gn:c10", 30, 3),
        ("gn:31", 31, 31),
        *[("ln", c, 1) for c in (16, 30, 31, 256)],
        *[("in", c, c) for c in (16, 30, 31, 256)],
    ],
)
def test_a_spec_sets_the_groups(spec: str, channels: int, groups: int) -> None:
    norm = norm_layer(spec)(channels)
    assert type(norm) is GroupNorm
    assert (norm.num_groups, norm.num_channels, norm.eps, norm.activation) == (groups, channels, 1e-5, None)
    assert norm.affine


@pytest.mark.parametrize("channels", [16, 31, 256])
def test_bn_is_torchs_batch_norm_and_none_is_the_identity(channels: int) -> None:
    assert repr(norm_layer("bn")(channels)) == repr(nn.BatchNorm2d(channels))
    assert type(norm_layer("none")(channels)) is nn.Identity


@pytest.mark.parametrize(
    "spec", ["", "gn:", "gn:0", "gn:-8", "gn:c", "gn:c0", "gn:08", "gn:8 ", "gn:8.0", "g:8", "ln:8"]
)
def test_a_malformed_spec_is_refused_at_once(spec: str) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(f"unknown norm {spec!r}")):
        norm_layer(spec)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        *[("groupnorm", "gn"), ("GroupNorm", "gn"), ("layernorm", "ln"), ("batchnorm", "bn"), ("instance", "in")],
        *[("switchable", "sn"), ("filter-response", "frn"), ("Batch Renormalization", "brn"), ("renorm", "brn")],
        *[("gn+ws", "ws+gn"), ("powernorm", "pn"), ("evonorm", "evonorm-s0"), ("gn:", "gn")],
    ],
)
def test_another_name_of_a_norm_leads_to_its_spec(name: str, spec: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"did you mean '{re.escape(spec)}(:8)?'\?"):
        norm_layer(name)


@pytest.mark.parametrize("spec", SPECS)
def test_a_factory_can_be_pickled(spec: str) -> None:
    factory = norm_layer(spec, activation="silu")
    assert repr(pickle.loads(pickle.dumps(factory))(64)) == repr(factory(64))


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "none"])
def test_a_factory_takes_eps_device_and_dtype(spec: str) -> None:
    norm = norm_layer(spec)(64, eps=1e-3, device="meta", dtype=torch.float64)
    assert (norm.eps, norm.weight.device.type, norm.weight.dtype) == (1e-3, "meta", torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spec", SPECS)
def test_the_named_activation_follows_every_norm(spec: str, activation: str) -> None:
    x = torch.randn(4, 64, 3, 3)
    bare, followed = norm_layer(spec)(64), norm_layer(spec, activation=activation)(64)
    torch.testing.assert_close(followed(x), ACTIVATIONS[activation](bare(x)))


class TestProtocolOfTimm:
    """A norm layer that is told whether to apply the activation, and with what in between."""

    @pytest.mark.parametrize("spec", SPECS)
    def test_apply_act_false_applies_none(self, spec: str) -> None:
        layer = norm_layer(spec, activation="silu")(64, apply_act=False, inplace=True)
        assert repr(layer) == repr(norm_layer(spec)(64))

    @pytest.mark.parametrize("spec", SPECS)
    def test_a_model_that_wants_an_activation_is_refused_when_none_is_named(self, spec: str) -> None:
        with pytest.raises(ArgumentError, match="this model expects norm_layer to apply the activation too"):
            timm.layers.get_norm_act_layer(norm_layer(spec), act_layer=nn.SiLU)

    @pytest.mark.parametrize("spec", SPECS)
    def test_a_drop_layer_comes_between_norm_and_activation(self, spec: str) -> None:
        layer = norm_layer(spec, activation="silu")(64, drop_layer=nn.Dropout)
        assert [name for name, _ in layer.named_children()] == ["norm", "drop", "act"]
        assert repr(layer.norm) == repr(norm_layer(spec)(64))
        assert (type(layer.drop), type(layer.act)) == (nn.Dropout, nn.SiLU)


def activations(model: nn.Module, name: str) -> int:
    """How many layers of the model apply the activation: modules of its own, and norms that include it."""
    own = sum(type(m).__name__.lower() == name for m in model.modules())  # timm has a GELU of its own
    return own + sum(isinstance(m, GroupNorm) and m.activation == name for m in model.modules())


def norms(model: nn.Module) -> int:
    """How many normalisations the model has."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return sum(isinstance(m, kinds) for m in model.modules())


def assert_replaced(model: nn.Module, original: nn.Module, activation: str) -> None:
    """Every norm is a GroupNorm now, every activation is there, and the model trains."""
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert sum(isinstance(m, GroupNorm) for m in model.modules()) == norms(original) > 0
    assert activations(model, activation) == activations(original, activation) > 0
    replaced = [m for m in model.modules() if isinstance(m, GroupNorm)]
    for norm in replaced:
        norm.reset_parameters()  # models start some at 0, and no gradient passes those
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(norm.weight.grad.any() for norm in replaced)


@pytest.mark.parametrize("spec", ["gn", "gn:8", "gn:c16", "ln"])
def test_torchvisions_resnet18_takes_it(spec: str) -> None:
    model = torchvision.models.resnet18(norm_layer=norm_layer(spec))
    assert sum(isinstance(m, GroupNorm) for m in model.modules()) == 20
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "named", "activation"),
    [
        ("resnet18", None, "relu"),
        ("convnext_atto", None, "gelu"),
        ("efficientnet_b0", "silu", "silu"),
        ("regnety_002", "relu", "relu"),
        ("densenet121", "relu", "relu"),
    ],
)
def test_timms_models_take_it_and_keep_every_activation(name: str, named: str | None, activation: str) -> None:
    original = timm.create_model(name, pretrained=False, num_classes=10)
    model = timm.create_model(name, pretrained=False, num_classes=10, norm_layer=norm_layer("gn", activation=named))
    assert_replaced(model, original, activation)


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnety_002", "densenet121", "resnetv2_50"])
def test_timms_models_with_fused_activations_are_refused_when_none_is_named(name: str) -> None:
    """Some of them call the factory as resnet18 does, and would silently lose every activation."""
    with pytest.raises(ArgumentError, match=r"norm_layer\(spec, activation='relu'\), 'silu' or 'gelu'"):
        timm.create_model(name, pretrained=False, norm_layer=norm_layer("gn"))


def test_a_layer_from_a_factory_computes_the_definition() -> None:
    case = make_case((2, 48, 3, 3), affine="none")
    layer = norm_layer("gn:c16", activation="gelu")(48, dtype=torch.float64)
    assert_agrees(layer(case.x), case, group_set(3), activation="gelu")


@pytest.mark.parametrize("spec", ["gn", "ln", "in", "ws+gn", "brn"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_group_norms_come_with_a_backend(spec, activation):
    layer = norm_layer(spec, activation=activation, backend="native")(8)
    norms = [module for module in layer.modules() if isinstance(module, GroupNorm)]
    assert [norm.backend for norm in norms] == ([] if spec == "brn" else ["native"])
    assert pickle.loads(pickle.dumps(norm_layer(spec, backend="native")))(8).extra_repr() == (
        norm_layer(spec, backend="native")(8).extra_repr()
    )
    plain = norm_layer(spec, activation=activation)(8)
    assert all(module.backend == "auto" for module in plain.modules() if isinstance(module, GroupNorm))
    with pytest.raises(UnknownNameError, match="unknown backend 'onnx'"):
        norm_layer(spec, backend="onnx")


@pytest.mark.parametrize("channels", [16.0, "16", True, None])
@pytest.mark.parametrize("spec", ["gn", "bn", "none", "ln"])
def test_channels_that_are_no_integer_are_told(spec, channels):
    with pytest.raises(ArgumentError, match=r"num_channels=.* expected an integer: use int\(...\)"):
        norm_layer(spec)(channels)
    with pytest.raises(ArgumentError, match="num_channels=0; expected at least 1"):
        norm_layer(spec)(0)
