"""Batch-channel norm against its definition, and what its two steps and two affine maps are for."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import assert_agrees, make_case, with_gradients
from groupnorm.errors import ArgumentError, DivisibilityError, SingleElementError
from groupnorm.nn import BatchChannelNorm, ContinualNorm
from groupnorm.ops.reference import average, normalize, per_channel, statistics
from groupnorm.sets import batch_set, group_set, instance_set
from tolerances import rounding

PARAMETERS = ("weight", "bias", "batch_weight", "batch_bias")


def function_of(layer):
    """The layer as a function of its input and all four parameters."""
    return lambda x, *values: torch.func.functional_call(layer, dict(zip(PARAMETERS, values, strict=True)), (x,))


def inputs_of(shape):
    case, inner = make_case(shape), make_case(shape)
    return [case.x, case.weight, case.bias, inner.weight, inner.bias], case.upstream


def definition(groups, eps=1e-5):
    def function(x, weight, bias, batch_weight, batch_bias):
        return normalize(normalize(x, batch_set(), batch_weight, batch_bias, eps), group_set(groups), weight, bias, eps)

    return function


def assert_near(actual, expected, x):
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=rounding(torch.float64, x, want))


@pytest.mark.parametrize("shape", [(8, 6, 3, 5), (8, 6), (8, 6, 4), (8, 6, 2, 3, 2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_group_norm_of_batch_norm(shape, groups):
    inputs, upstream = inputs_of(shape)
    layer = BatchChannelNorm(6, groups).double()
    actual = with_gradients(function_of(layer), inputs, upstream)
    assert_near(actual, with_gradients(definition(groups), inputs, upstream), inputs[0])


def test_derivatives_of_first_and_second_order():
    inputs, _ = inputs_of((4, 4, 3))
    inputs = [t.requires_grad_() for t in inputs]
    layer = BatchChannelNorm(4, 2).double()
    assert gradcheck(function_of(layer), inputs)
    assert gradgradcheck(function_of(layer), inputs)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_batch_norms_and_serve_its_step_in_evaluation(momentum):
    layer, batch = BatchChannelNorm(6, 3, momentum=momentum).double(), nn.BatchNorm2d(6, momentum=momentum).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    batch.weight, batch.bias = layer.batch_weight, layer.batch_bias
    for _ in range(4):
        x = make_case((8, 6, 3, 5)).x
        layer(x)
        batch(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layer, name), getattr(batch, name))
    expected = normalize(batch.eval()(x), group_set(3), layer.weight, layer.bias)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=0, atol=rounding(torch.float64, x, expected))


def test_the_order_matters():
    """What comes last leaves its mean 0 and its variance 1: groups of samples here, the batch in continual norm."""
    x = make_case((8, 6, 3, 5)).x
    x = x + 3 * torch.randn(8, 6, 1, 1) * torch.arange(1, 9).view(8, 1, 1, 1)  # maps that differ, samples that vary
    ours, other = (layer(6, 2, eps=0, affine=False).double()(x) for layer in (BatchChannelNorm, ContinualNorm))
    for y, last, first in ((ours, group_set(2), batch_set()), (other, batch_set(), group_set(2))):
        mean, variance = statistics(y, last)
        torch.testing.assert_close(mean, torch.zeros_like(x), rtol=0, atol=rounding(torch.float64, x, y))
        torch.testing.assert_close(variance, torch.ones_like(x), rtol=0, atol=rounding(torch.float64, x, y))
        assert average(y, first).abs().max() > 0.02
    assert (ours - other).abs().max() > 0.5


def test_one_sample_in_groups_of_one_channel_is_instance_norm_in_either_order():
    """Both steps then share the same elements, and what is normalised stays as it is."""
    case = make_case((1, 6, 3, 5), affine="none")
    for layer in (BatchChannelNorm, ContinualNorm):
        assert_agrees(layer(6, 6, eps=0).double()(case.x), case, instance_set(), eps=0)


def test_zero_in_weight_silences_the_layer():
    """The scale that a residual network starts at 0 is the one that comes last."""
    layer = BatchChannelNorm(6, 3)
    nn.init.zeros_(layer.weight)
    assert not layer(torch.randn(4, 6, 5, 5)).any()
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.batch_weight)
    nn.init.ones_(layer.batch_bias)
    nn.init.normal_(layer.bias)
    y = layer(torch.randn(4, 6, 5, 5))
    torch.testing.assert_close(y, per_channel(layer.bias, y).expand_as(y))


def test_the_published_code_scales_groups_and_this_layer_channels():
    """The authors' code has ``num_groups`` scales and shifts in the second step."""
    x, batch = make_case((4, 6, 3, 5)).x, nn.BatchNorm2d(6).double()
    scale, shift = torch.rand(3, dtype=torch.float64) + 0.5, torch.randn(3, dtype=torch.float64)
    grouped = normalize(batch(x), group_set(3)).view(4, 3, -1)
    published = (grouped * scale.view(1, 3, 1) + shift.view(1, 3, 1)).view_as(x)
    layer = BatchChannelNorm(6, 3).double()
    assert layer.weight.shape == layer.bias.shape == (6,)
    with torch.no_grad():
        layer.weight.copy_(scale.repeat_interleave(2))
        layer.bias.copy_(shift.repeat_interleave(2))
        torch.testing.assert_close(layer(x), published)
        layer.weight[0] = 0  # one channel of a group alone: no three scales can do this
        y = layer(x)
    torch.testing.assert_close(y[:, 0], shift[0].expand_as(y[:, 0]))
    torch.testing.assert_close(y[:, 1:], published[:, 1:])


def test_its_state_is_that_of_batch_norm_and_the_inner_affine_map():
    keys = ["weight", "bias", "batch_weight", "batch_bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(BatchChannelNorm(6, 3).state_dict()) == keys
    bare = BatchChannelNorm(6, 3, affine=False)
    assert list(bare.state_dict()) == keys[4:]
    assert not list(bare.parameters())


def test_reset_parameters_goes_back_to_the_start():
    layer = BatchChannelNorm(6, 3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer(torch.randn(4, 6, 5, 5))
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), BatchChannelNorm(6, 3).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "groups", "message"),
    [((1, 6), 2, r"input \(1, 6\) has 1 element for each"), ((4, 6), 6, r"num_groups=6 has 1 element per group")],
)
def test_one_element_per_statistic_is_refused_and_changes_nothing(shape, groups, message):
    layer = BatchChannelNorm(6, groups)
    with pytest.raises(SingleElementError, match=message):
        layer(torch.randn(shape))
    torch.testing.assert_close(layer.state_dict(), BatchChannelNorm(6, groups).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("groups", "error"), [(4, DivisibilityError), (0, ArgumentError), (2.0, ArgumentError)])
def test_groups_that_cannot_be_are_refused(groups, error):
    with pytest.raises(error, match=f"num_groups={groups}"):
        BatchChannelNorm(6, groups)
