"""Switchable norm against its definition, at its three corners, and beside the authors' code."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import assert_agrees, make_case, run, with_gradients
from groupnorm.errors import SingleElementError
from groupnorm.nn import SwitchableNorm
from groupnorm.ops.reference import affine, per_channel, statistics
from groupnorm.sets import batch_set, instance_set, layer_set
from tolerances import rounding

SETS = (instance_set(), layer_set(), batch_set())
PARAMETERS = ("weight", "bias", "mean_weight", "var_weight")


def function_of(layer):
    """The layer as a function of its input and all four parameters."""
    return lambda x, *values: torch.func.functional_call(layer, dict(zip(PARAMETERS, values, strict=True)), (x,))


def inputs_of(shape):
    case = make_case(shape)
    logits = torch.randn(2, 3, dtype=torch.float64)
    return [case.x, case.weight, case.bias, *logits], case.upstream


def definition(x, weight, bias, mean_weight, var_weight, batch=None):
    """The mixture of the moments of three sets; ``batch`` takes the place of the batch's."""
    moments = [statistics(x, shared) for shared in SETS]
    moments[2] = batch or moments[2]
    mean, variance = (
        sum(w * m for w, m in zip(torch.softmax(weights, 0), values, strict=True))
        for weights, values in zip((mean_weight, var_weight), zip(*moments, strict=True), strict=True)
    )
    return affine((x - mean) / torch.sqrt(variance + 1e-5), weight, bias)


def authors(x, weight, bias, mean_weight, var_weight, *, correction):
    """The moments as the authors' code forms them, all from those of a map, whose variance it corrects by 1."""
    mean, variance = x.flatten(2).mean(2), x.flatten(2).var(2, correction=correction)
    square = variance + mean.square()
    moments = [(mean, variance)]
    for axis in (1, 0):
        pooled = mean.mean(axis, keepdim=True)
        moments.append((pooled, square.mean(axis, keepdim=True) - pooled.square()))
    mean = sum(w * m for w, (m, _) in zip(torch.softmax(mean_weight, 0), moments, strict=True))[..., None, None]
    variance = sum(w * v for w, (_, v) in zip(torch.softmax(var_weight, 0), moments, strict=True))[..., None, None]
    return affine((x - mean) / torch.sqrt(variance + 1e-5), weight, bias)


@pytest.mark.parametrize("shape", [(8, 6, 3, 5), (8, 6), (8, 6, 4), (8, 6, 2, 3, 2), (8, 6, 1, 1), (1, 6, 3, 5)])
def test_it_is_the_mixture_of_three_norms(shape):
    inputs, upstream = inputs_of(shape)
    actual = with_gradients(function_of(SwitchableNorm(6).double()), inputs, upstream)
    for got, want in zip(actual, with_gradients(definition, inputs, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=rounding(torch.float64, inputs[0], want))


def test_derivatives_of_first_and_second_order():
    inputs, _ = inputs_of((3, 2, 4))
    inputs = [t.requires_grad_() for t in inputs]
    assert gradcheck(function_of(SwitchableNorm(2).double()), inputs)
    assert gradgradcheck(function_of(SwitchableNorm(2).double()), inputs)


@pytest.mark.parametrize("corner", [0, 1, 2])
def test_all_weight_on_one_norm_is_that_norm(corner):
    case = make_case((8, 6, 3, 5))
    layer = SwitchableNorm(6).double()
    with torch.no_grad():
        for weight in (layer.mean_weight, layer.var_weight):
            weight[corner] = 80  # the softmax gives the others exp(-79)

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert_agrees(run(function, case), case, SETS[corner])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_batch_norms_and_take_the_batchs_place_in_evaluation(momentum):
    layer, batch = SwitchableNorm(6, momentum=momentum).double(), nn.BatchNorm2d(6, momentum=momentum).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    for _ in range(4):
        x = make_case((8, 6, 3, 5)).x
        layer(x)
        batch(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layer, name), getattr(batch, name))
    running = per_channel(batch.running_mean, x), per_channel(batch.running_var, x)
    expected = definition(x, *(getattr(layer, name) for name in PARAMETERS), batch=running)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=0, atol=rounding(torch.float64, x, expected))


def test_the_authors_variance_of_a_map_is_unbiased_and_this_one_is_not():
    """On 2x2 maps theirs is 4/3 of it, and the layer's and the batch's variance inherit the error."""
    inputs, _ = inputs_of((8, 6, 2, 2))
    ours = function_of(SwitchableNorm(6).double())(*inputs)
    torch.testing.assert_close(ours, authors(*inputs, correction=0))
    theirs = authors(*inputs, correction=1)
    assert (theirs - ours).abs().max() > 0.05
    inputs[4] = torch.tensor([80.0, 0, 0], dtype=torch.float64)  # the variance of instance norm alone
    inputs[1], inputs[2] = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    ratio = function_of(SwitchableNorm(6).double())(*inputs) / authors(*inputs, correction=1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, (4 / 3) ** 0.5), rtol=1e-2, atol=0)  # eps is in both


def test_on_1x1_maps_the_authors_code_is_not_a_number_and_this_is():
    inputs, _ = inputs_of((8, 6, 1, 1))
    with pytest.warns(UserWarning, match="degrees of freedom is <= 0"):
        assert authors(*inputs, correction=1).isnan().all()
    assert function_of(SwitchableNorm(6).double())(*inputs).isfinite().all()


def test_it_starts_with_equal_weights_and_batch_norms_statistics():
    layer = SwitchableNorm(6)
    keys = ["weight", "bias", "mean_weight", "var_weight", "running_mean", "running_var", "num_batches_tracked"]
    assert list(layer.state_dict()) == keys
    assert torch.equal(layer.mean_weight, torch.ones(3))
    assert torch.equal(layer.running_var, torch.ones(6))  # the authors' code starts at 0
    fresh = {key: value.clone() for key, value in layer.state_dict().items()}
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer(torch.randn(4, 6, 5, 5))
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), fresh, rtol=0, atol=0)
    assert [name for name, _ in SwitchableNorm(6, affine=False).named_parameters()] == ["mean_weight", "var_weight"]


def test_one_element_per_channel_in_the_batch_is_refused():
    with pytest.raises(SingleElementError, match=r"input \(1, 6\) has 1 element .* use a larger batch"):
        SwitchableNorm(6)(torch.randn(1, 6))
