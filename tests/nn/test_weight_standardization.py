"""Standardised weights against their definition, in every layer that has filters; on, folded and off again."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import WeightStandardization, standardize_weight_, unstandardize_weight_
from groupnorm.nn.weight_standardization import is_standardized
from groupnorm.ops.reference import normalize, statistics
from groupnorm.sets import layer_set
from tolerances import rounding

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 4, 3)),
    "1x1": (lambda: nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 6)),
    "linear": (lambda: nn.Linear(4, 6), (2, 4)),
}
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def definition(layer, weight, eps=1e-5):
    """Each filter over all of its weights; those of a transposed convolution lie along the second axis."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    filters = weight.transpose(0, 1) if transposed else weight
    standardised = normalize(filters, layer_set(), eps=eps)
    return standardised.transpose(0, 1) if transposed else standardised


def filters(channels=6, inputs=4):
    return torch.randn(channels, inputs, 3, 3, dtype=torch.float64) * 0.3 + 0.1


@every_layer
def test_a_layer_computes_with_the_definition_and_so_do_its_gradients(make, shape):
    layer = make().double()
    plain = copy.deepcopy(layer)
    x = torch.randn(shape, dtype=torch.float64)
    standardize_weight_(layer)
    weight = plain.weight.detach().clone().requires_grad_()
    expected = torch.func.functional_call(plain, {"weight": definition(plain, weight)}, (x,))
    y, upstream = layer(x), torch.randn_like(expected)
    torch.testing.assert_close(y, expected)
    (slope,) = torch.autograd.grad(y, layer.parametrizations.weight.original, upstream)
    torch.testing.assert_close(slope, *torch.autograd.grad(expected, weight, upstream))
    assert slope.any()


@every_layer
def test_every_output_channel_has_mean_0_and_variance_1(make, shape):
    layer = standardize_weight_(make().double(), eps=0.0)
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    rows = layer.weight.movedim(axis, 0).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros_like(rows[:, 0]))
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones_like(rows[:, 0]))


def test_gradients_pass_through_mean_and_variance():
    """So they have no part along the ones and, but for eps, none along the weight itself."""
    weight = filters().requires_grad_()
    y = WeightStandardization(eps=0.0)(weight)
    (slope,) = torch.autograd.grad(y, weight, torch.randn_like(y))
    zeros = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(slope.flatten(1).sum(1), zeros)
    torch.testing.assert_close((slope * weight).flatten(1).sum(1), zeros)
    small = filters(2, 1).requires_grad_()
    assert gradcheck(WeightStandardization(), small)
    assert gradgradcheck(WeightStandardization(), small)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float64_rounded(dtype):
    weight = filters().to(dtype)
    y, exact = WeightStandardization()(weight), WeightStandardization()(weight.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=rounding(dtype, weight, exact))
    tiny = 1e-4 * weight  # whose squares underflow in float16
    assert WeightStandardization(eps=0.0)(tiny).isfinite().all()


class TestPublishedCodes:
    """Five ways to write it. They agree on the mean, and differ in the variance and the place of eps."""

    UNBIASED_OUTSIDE = staticmethod(lambda w, var, m: w / ((var * m / (m - 1)).sqrt() + 1e-5))
    """The authors' PyTorch code."""
    UNBIASED_INSIDE = staticmethod(lambda w, var, m: w / (var * m / (m - 1) + 1e-5).sqrt())
    """The authors' batch-channel normalisation."""
    BIASED_OUTSIDE = staticmethod(lambda w, var, m: w / (var.sqrt() + 1e-5))
    """The authors' TensorFlow code, and tensorpack's."""
    BIASED_INSIDE = staticmethod(lambda w, var, m: w / (var + 1e-6).sqrt())
    """timm's."""

    @pytest.mark.parametrize("inputs", [1, 4, 64])
    @pytest.mark.parametrize("code", ["UNBIASED_OUTSIDE", "UNBIASED_INSIDE"])
    def test_the_unbiased_variance_makes_weights_smaller_by_one_known_factor(self, code, inputs):
        weight = 1e3 * filters(inputs=inputs)  # for which no eps counts
        mean, variance = statistics(weight, layer_set())
        m = 9 * inputs
        theirs = getattr(self, code)(weight - mean, variance, m)
        torch.testing.assert_close(WeightStandardization()(weight), theirs * (m / (m - 1)) ** 0.5)

    @pytest.mark.parametrize("code", ["BIASED_OUTSIDE", "BIASED_INSIDE"])
    def test_the_others_agree_where_no_eps_counts(self, code):
        weight = 1e3 * filters()
        mean, variance = statistics(weight, layer_set())
        theirs = getattr(self, code)(weight - mean, variance, 36)
        torch.testing.assert_close(WeightStandardization()(weight), theirs)

    def test_timms_layer_is_this_one_with_its_eps(self):
        timms = timm.layers.StdConv2d(4, 6, 3, padding=0, bias=True)
        ours = standardize_weight_(nn.Conv2d(4, 6, 3), eps=timms.eps)
        ours.parametrizations.weight.original.data.copy_(timms.weight)
        ours.bias.data.copy_(timms.bias)
        x = torch.randn(2, 4, 7, 7)
        torch.testing.assert_close(ours(x), timms(x))
        assert timms.eps == 1e-6

    def test_eps_inside_shrinks_small_weights_more(self):
        """With a standard deviation of 1e-3, 1e-5 outside the root takes 1% away, and inside two thirds."""
        weight = filters()
        mean, variance = statistics(weight, layer_set())
        weight = 1e-3 * (weight - mean) / variance.sqrt()
        outside = self.BIASED_OUTSIDE(weight, torch.full_like(weight, 1e-6), 36)
        inside = WeightStandardization()(weight)
        torch.testing.assert_close(outside, 1e3 * weight / 1.01)
        torch.testing.assert_close(inside, 1e3 * weight / 11**0.5)


class TestSwitchingOnAndOff:
    def test_the_parameter_stays_the_same_object_and_the_optimiser_moves_it(self):
        layer = nn.Conv2d(4, 6, 3)
        weight = layer.weight
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        standardize_weight_(layer)
        assert layer.parametrizations.weight.original is weight
        before = layer.weight.detach().clone()
        layer(torch.randn(2, 4, 5, 5)).square().mean().backward()
        optimizer.step()
        assert not torch.equal(layer.weight, before)
        assert [name for name, _ in layer.named_parameters()] == ["bias", "parametrizations.weight.original"]

    @every_layer
    def test_off_again_the_learned_weight_is_back_bit_for_bit(self, make, shape):
        layer = make()
        weight, copied = layer.weight, layer.weight.detach().clone()
        kind = type(layer)
        unstandardize_weight_(standardize_weight_(layer), fold=False)
        assert layer.weight is weight
        assert torch.equal(weight, copied)
        assert type(layer) is kind
        assert not is_standardized(layer)

    @every_layer
    def test_folded_the_layer_computes_the_same_without_a_parametrization(self, make, shape):
        layer = standardize_weight_(make())
        weight, x = layer.parametrizations.weight.original, torch.randn(shape)
        y = layer(x)
        unstandardize_weight_(layer, fold=True)
        assert torch.equal(layer(x), y)
        assert layer.weight is weight
        assert not parametrize.is_parametrized(layer)

    def test_a_frozen_weight_stays_frozen(self):
        layer = nn.Conv2d(4, 6, 3)
        layer.weight.requires_grad_(False)
        standardize_weight_(layer)
        assert not layer.weight.requires_grad
        assert not unstandardize_weight_(layer, fold=True).weight.requires_grad

    def test_copies_are_on_their_own_and_state_dicts_go_round(self):
        layer = standardize_weight_(nn.Conv2d(4, 6, 3))
        twin = copy.deepcopy(layer)
        nn.init.normal_(layer.parametrizations.weight.original)
        assert not torch.equal(layer.weight, twin.weight)
        twin.load_state_dict(layer.state_dict())
        assert torch.equal(layer.weight, twin.weight)
        assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}

    @pytest.mark.parametrize("fold", [False, True])
    def test_off_again_in_one_its_deep_copies_stay_standardised(self, fold):
        """Torch gives deep copies the class of the original, and takes the property from that class."""
        layer, x = standardize_weight_(nn.Conv2d(4, 6, 3)), torch.randn(2, 4, 5, 5)
        copies = [copy.deepcopy(layer), copy.deepcopy(layer)]
        expected = layer(x)
        unstandardize_weight_(layer, fold=fold)
        for twin in copies:
            assert torch.equal(twin(x), expected)
            assert is_standardized(copy.deepcopy(twin))
            unstandardize_weight_(twin, fold=fold)
            assert torch.equal(twin.weight, layer.weight)
            assert type(twin) is nn.Conv2d

    def test_a_copy_of_a_parametrised_layer_is_not_standardised_with_it(self):
        layer = parametrize.register_parametrization(nn.Conv2d(4, 6, 3), "bias", nn.Softplus())
        twin, x = copy.deepcopy(layer), torch.randn(2, 4, 5, 5)
        expected = twin(x)
        standardize_weight_(layer)
        assert torch.equal(twin(x), expected)
        assert torch.equal(unstandardize_weight_(layer, fold=False)(x), expected)
        assert parametrize.is_parametrized(layer, "bias")

    def test_two_layers_with_one_weight_keep_it(self):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        standardize_weight_(first), standardize_weight_(second)
        assert first.parametrizations.weight.original is second.parametrizations.weight.original
        assert torch.equal(first.weight, second.weight)

    def test_it_is_the_last_of_several_parametrizations(self):
        layer = standardize_weight_(spectral_norm(nn.Conv2d(4, 6, 3)))
        rows = layer.weight.flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(6))
        with pytest.raises(ArgumentError, match=r"has further parametrizations.*remove the others first"):
            unstandardize_weight_(layer, fold=True)

    def test_its_eps_is_seen(self):
        assert "WeightStandardization(eps=0.001)" in repr(standardize_weight_(nn.Linear(4, 6), eps=1e-3))
        transposed = standardize_weight_(nn.ConvTranspose2d(4, 6, 3))
        assert "WeightStandardization(eps=1e-05, out_axis=1)" in repr(transposed)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "ReLU has no weight of at least two axes; expected a convolution or linear layer"),
        (nn.BatchNorm2d(4), "BatchNorm2d has no weight of at least two axes"),
        (standardize_weight_(nn.Linear(4, 6)), r"is standardised already.*use unstandardize_weight_\(\) first"),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), "is transposed and has groups=2; expected groups=1"),
    ],
)
def test_what_has_no_plain_filters_is_refused(module, message):
    with pytest.raises(ArgumentError, match=f"(?s){message}"):
        standardize_weight_(module)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(1, 6, 1), nn.Linear(1, 6)])
def test_filters_of_one_weight_are_refused_because_they_would_be_0(layer):
    assert not WeightStandardization()(layer.weight).any()
    with pytest.raises(SingleElementError, match=r"has 1 weight for each output channel.*leave this layer as it is"):
        standardize_weight_(layer)
    assert not parametrize.is_parametrized(layer)


def test_other_mistakes_are_refused():
    with pytest.raises(ArgumentError, match="is not standardised; expected a module from standardize_weight_"):
        unstandardize_weight_(nn.Linear(4, 6), fold=True)
    layer = nn.Linear(4, 6)
    with pytest.raises(ArgumentError, match="eps=-1"):
        standardize_weight_(layer, eps=-1)
    assert not parametrize.is_parametrized(layer)


def test_with_padding_zeros_the_output_of_a_constant_input_is_zero_inside():
    """The mean of each filter is 0, so a constant input vanishes; with plain weights it does not."""
    layer = standardize_weight_(nn.Conv2d(4, 6, 3, bias=False).double())
    x = torch.ones(1, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.zeros(1, 6, 3, 3, dtype=torch.float64))
    assert F.conv2d(x, layer.parametrizations.weight.original).any()


@pytest.mark.parametrize("fold", [True, False])
@every_layer
def test_parameters_come_back_in_the_order_they_had(make, shape, fold):
    layer = make()
    order = list(layer._parameters)
    unstandardize_weight_(standardize_weight_(layer), fold=fold)
    assert list(layer._parameters) == order
    twin = copy.deepcopy(standardize_weight_(layer))
    assert list(unstandardize_weight_(twin, fold=fold)._parameters) == order


@pytest.mark.parametrize("first", [True, False])
def test_other_parametrizations_stay_where_the_weight_is_not_folded(first):
    layer = nn.Conv2d(4, 6, 3).eval()
    spectral_norm(layer) if first else standardize_weight_(layer)
    before = layer.weight.detach().clone()
    standardize_weight_(layer) if first else spectral_norm(layer)
    with pytest.raises(ArgumentError, match="remove the others first, or use fold=False"):
        unstandardize_weight_(layer, fold=True)
    assert unstandardize_weight_(layer, fold=False) is layer
    assert not is_standardized(layer)
    assert len(layer.parametrizations.weight) == 1
    if first:
        torch.testing.assert_close(layer.weight, before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_is_told(change):
    with pytest.raises(ArgumentError, match="the weight of Conv2d is computed by a hook from other tensors"):
        standardize_weight_(change(nn.Conv2d(4, 6, 3)))
