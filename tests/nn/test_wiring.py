"""Finding the layer before each norm that needs it, and what happens when there is none."""

import copy
import pickle
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from groupnorm import norm_layer
from groupnorm.errors import ArgumentError, SingleElementError, WiringError
from groupnorm.nn import wire_
from groupnorm.nn.weight_standardization import is_standardized

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Needy(nn.Module):
    """A norm that takes note of the layer before it."""

    attached: nn.Module | None = None

    def attach(self, convolution):
        if isinstance(convolution, nn.Linear):
            raise ArgumentError("no linear layers here")
        object.__setattr__(self, "attached", convolution)  # not as a submodule

    def forward(self, x):
        return x * 1


class Called(nn.Module):
    """A network whose forward pass is a function of its modules."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.call(self, x)


def conv(channels=3, width=4):
    return nn.Conv2d(channels, width, 3, padding=1)


def gn(channels=4):
    return norm_layer("ws+gn:2")(channels)


def standardised(model):
    return {name for name, module in model.named_modules() if is_standardized(module)}


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


class TestModelsThatCanBeWired:
    @pytest.mark.parametrize("spec", ["ws+gn", "ws+bn", "ws+none"])
    def test_resnet18_has_every_convolution_standardised_and_its_classifier_not(self, spec):
        model = torchvision.models.resnet18(norm_layer=norm_layer(spec))
        pairs = wire_(model, torch.randn(2, 3, 32, 32))
        convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        assert standardised(model) == convolutions == {layer for layer, _ in pairs}
        assert len(pairs) == 20
        assert ("layer2.0.downsample.0", "layer2.0.downsample.1") in pairs
        assert pairs[0] == ("conv1", "bn1")
        model(torch.randn(2, 3, 32, 32)).square().mean().backward()
        assert all(parameter.grad.any() for parameter in model.parameters())

    def test_an_identity_between_does_not_part_them(self):
        model = nn.Sequential(conv(), nn.Identity(), nn.Dropout(0.5), gn())
        assert wire_(model, X) == [("0", "3")]
        assert is_standardized(model[0])

    def test_a_linear_layer_counts(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), gn(8))
        assert wire_(model, X) == [("1", "2")]

    def test_two_norms_may_share_a_layer(self):
        def forward(model, x):
            y = model.conv(x)
            return model.first(y) + model.second(y)

        model = Called(forward, conv=conv(), first=gn(), second=gn())
        assert wire_(model, X) == [("conv", "first"), ("conv", "second")]
        assert standardised(model) == {"conv"}

    def test_one_norm_may_follow_several_layers(self):
        model = Called(lambda m, x: m.norm(m.a(x)) + m.norm(m.b(x)), a=conv(), b=conv(), norm=gn())
        assert wire_(model, X) == [("a", "norm"), ("b", "norm")]
        assert standardised(model) == {"a", "b"}

    def test_a_block_that_is_used_twice_is_wired_once(self):
        block = nn.Sequential(conv(4), gn())
        model = nn.Sequential(conv(), block, block)
        assert wire_(model, X) == [("1.0", "1.1")]
        assert standardised(model) == {"1.0"}
        assert model(X).isfinite().all()

    def test_a_layer_that_is_standardised_already_serves_as_it_is(self):
        model = nn.Sequential(conv(), gn())
        wire_(model, X)
        wider = nn.Sequential(model[0], gn())
        assert wire_(wider, X) == [("0", "1")]
        assert len(wider[0].parametrizations.weight) == 1

    def test_a_norm_that_is_called_by_keyword_is_found(self):
        model = Called(lambda m, x: m.norm(input=m.conv(x)), conv=conv(), norm=gn())
        assert wire_(model, X) == [("conv", "norm")]

    def test_a_norm_that_needs_the_layer_itself_gets_it(self):
        model = nn.Sequential(conv(), Needy(), nn.ReLU(), conv(4), gn())
        assert wire_(model, X) == [("0", "1"), ("3", "4")]
        assert model[1].attached is model[0]
        assert standardised(model) == {"3"}

    def test_a_second_time_does_nothing(self):
        model = nn.Sequential(conv(), gn())
        wire_(model, X)
        y, keys = model(X), list(model.state_dict())
        assert wire_(model, X) == []
        assert list(model.state_dict()) == keys
        assert torch.equal(model(X), y)

    def test_a_model_without_needy_norms_is_not_even_run(self):
        def forward(model, x):
            raise AssertionError

        assert wire_(Called(forward, conv=conv(), norm=norm_layer("gn")(4)), X) == []


class TestWhatWiringLeavesAlone:
    def test_modes_buffers_parameters_and_random_state_stay_as_they_are(self):
        model = nn.Sequential(
            conv(), norm_layer("ws+bn")(4), nn.Dropout(0.5), conv(4), norm_layer("bn")(4), conv(4), gn()
        )
        model[4].eval()
        model[2].eval()
        modes = [module.training for module in model.modules()]
        before, random = state(model), torch.get_rng_state()
        wire_(model, X)
        modules = [module for name, module in model.named_modules() if "parametrizations" not in name]
        assert [module.training for module in modules] == modes
        assert torch.equal(torch.get_rng_state(), random)
        after = {key.replace("parametrizations.weight.original", "weight"): v for key, v in state(model).items()}
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_hooks_of_the_users_stay(self):
        model = nn.Sequential(conv(), gn())
        seen = []
        model[1].register_forward_pre_hook(lambda module, inputs: seen.append("norm"))
        model[0].register_forward_hook(lambda module, inputs, output: seen.append("conv"))
        wire_(model, X)
        seen.clear()
        model(X)
        assert seen == ["conv", "norm"]


class TestModelsThatAreNotWired:
    MESSAGE = r"made by a factory with weight standardisation.*call groupnorm\.wire_"

    @pytest.mark.parametrize("training", [True, False])
    def test_the_first_forward_pass_is_refused(self, training):
        model = nn.Sequential(conv(), gn()).train(training)
        with pytest.raises(WiringError, match=self.MESSAGE):
            model(X)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda norm: pickle.loads(pickle.dumps(norm))])
    def test_copies_are_refused_too_and_can_be_wired(self, copied):
        norm = copied(gn())
        with pytest.raises(WiringError, match=self.MESSAGE):
            norm(torch.randn(2, 4, 3, 3))
        assert wire_(nn.Sequential(conv(), norm), X) == [("0", "1")]
        assert norm(torch.randn(2, 4, 3, 3)).isfinite().all()

    def test_a_wired_model_can_be_copied(self):
        model = nn.Sequential(conv(), gn())
        wire_(model, X)
        torch.testing.assert_close(copy.deepcopy(model)(X), model(X), rtol=0, atol=0)


def pre_activation():
    """Norm, ReLU, convolution, as in He et al. 2016b: the second norm receives a sum."""
    return Called(
        lambda m, x: m.conv2(m.norm2(m.conv1(m.norm1(m.stem(x)).relu()) + m.stem(x)).relu()),
        stem=conv(),
        norm1=gn(),
        conv1=conv(4),
        norm2=gn(),
        conv2=conv(4),
    )


LONE = "['{}'] do not receive the output of a convolution or linear layer; expected one right before each"
FAILING = {
    "pre-activation": (pre_activation, WiringError, LONE.format("norm2")),
    "norm first": (lambda: nn.Sequential(norm_layer("ws+gn:3")(3), conv()), WiringError, LONE.format("0")),
    "activation between": (lambda: nn.Sequential(conv(), nn.ReLU(), gn()), WiringError, LONE.format("2")),
    "in-place activation between": (
        lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), gn()),
        WiringError,
        LONE.format("2"),
    ),
    "once with and once without": (
        lambda: Called(lambda m, x: m.norm(m.norm(m.conv(x))), conv=conv(), norm=gn()),
        WiringError,
        LONE.format("norm"),
    ),
    "not reached": (
        lambda: Called(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=gn(), auxiliary=gn()),
        WiringError,
        "['auxiliary'] are not reached by this forward pass in evaluation mode; expected each to run",
    ),
    "several layers for one": (
        lambda: Called(lambda m, x: m.norm(m.a(x)) + m.norm(m.b(x)), a=conv(), b=conv(), norm=Needy()),
        WiringError,
        "['norm'] receive the outputs of several layers; expected one layer before each",
    ),
    "transposed with groups": (
        lambda: nn.Sequential(conv(), gn(), nn.ConvTranspose2d(4, 4, 3, groups=2), gn()),
        ArgumentError,
        "is transposed and has groups=2; expected groups=1",
    ),
    "one weight a filter": (
        lambda: nn.Sequential(conv(), gn(), nn.Conv2d(4, 4, 1, groups=4), gn()),
        SingleElementError,
        "has 1 weight for each output channel",
    ),
    "a layer that the norm refuses": (
        lambda: nn.Sequential(conv(), gn(), nn.Flatten(), nn.Linear(256, 4), Needy()),
        ArgumentError,
        "no linear layers here",
    ),
    "a forward pass that fails": (lambda: nn.Sequential(conv(), gn(), conv(5)), RuntimeError, "to have 5 channels"),
}


@pytest.mark.parametrize(("make", "error", "message"), FAILING.values(), ids=FAILING)
def test_a_model_that_cannot_be_wired_stays_as_it_was_and_refused(make, error, message):
    model = make().train()
    before, modes = state(model), [module.training for module in model.modules()]
    marks = [len(module._forward_pre_hooks) for module in model.modules()]
    for _ in range(2):  # the same again
        with pytest.raises(error, match=re.escape(message)):
            wire_(model, X)
    assert not standardised(model)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in model.modules()] == marks
    assert not any(module._forward_hooks for module in model.modules())
    if any(marks):
        with pytest.raises(WiringError, match=TestModelsThatAreNotWired.MESSAGE):
            model(X)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_weight_that_a_hook_computes_cannot_be_standardised_and_is_named(change):
    model = nn.Sequential(conv(), gn(), change(conv(4)), gn())
    with pytest.raises(ArgumentError, match=r"the weight of 2 is computed by a hook.*remove_spectral_norm first"):
        wire_(model, X)
    assert standardised(model) == set()
    with pytest.raises(WiringError, match=r"call groupnorm\.wire_"):
        model(X)


def test_a_module_that_works_when_it_is_told_to_evaluate_is_left_alone():
    class Told(nn.Identity):
        calls = 0

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    model = nn.Sequential(conv(), gn(), Told())
    model[2].training = False
    wire_(model, X)
    assert (model[2].calls, model[2].training, model[1].training) == (0, False, True)


@pytest.mark.parametrize("example", ["before", "within"])
def test_a_model_is_wired_in_inference_mode(example):
    model = nn.Sequential(conv(), gn(), conv(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), gn())
    with torch.inference_mode():
        x = X.clone() if example == "within" else X
        assert wire_(model, x) == [("0", "1"), ("4", "5")]
    assert model(X).requires_grad
    broken = nn.Sequential(conv(), nn.ReLU(inplace=True), gn())
    with torch.inference_mode(), pytest.raises(WiringError, match="do not receive the output of a convolution"):
        wire_(broken, X)
