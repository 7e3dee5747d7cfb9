"""Local response norm within a channel against its definition, and its divisor at the border."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from agreement import make_case
from groupnorm import norm_layer
from groupnorm.errors import ArgumentError, ShapeError
from groupnorm.nn import WithinChannelResponseNorm
from groupnorm.ops.reference import average
from groupnorm.sets import EACH, SharedSet, Window


def definition(size, alpha=1.0, beta=0.75):
    return lambda x: x / (1 + alpha * average(x.square(), SharedSet(EACH, EACH, Window(size)))) ** beta


def outcome(function, x, upstream):
    """Output and the gradient of the input."""
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), *torch.autograd.grad(y, x, upstream)


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 7), (2, 3, 4, 3, 5), (2, 3, 2, 2), (2, 3, 1, 1, 1)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_it_is_its_definition(shape, size):
    case = make_case(shape)
    actual = outcome(WithinChannelResponseNorm(size, alpha=0.7, beta=0.6), case.x, case.upstream)
    torch.testing.assert_close(actual, outcome(definition(size, alpha=0.7, beta=0.6), case.x, case.upstream))


def test_the_defaults_are_caffes():
    x = make_case((2, 3, 6, 5)).x
    torch.testing.assert_close(WithinChannelResponseNorm()(x), definition(5, alpha=1.0, beta=0.75)(x))


def test_zeros_beyond_the_border_are_counted():
    """Of ones, a window of 3 x 3 finds 4 at a corner, 6 at an edge and 9 inside; it divides by 9 everywhere."""
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    y = WithinChannelResponseNorm(3)(ones)[0, 0]
    found = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.float64)
    torch.testing.assert_close(y, (1 + found / 9) ** -0.75)
    without = ones * (1 + F.avg_pool2d(ones, 3, 1, 1, count_include_pad=False)) ** -0.75
    assert (y > without[0, 0]).sum() == 8  # all but the one inside


def test_the_constant_in_the_power_is_one():
    """Caffe reads ``k`` across channels alone. An input of 0 around a 1 is divided by (1 + alpha / size^2)^beta."""
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 1
    assert WithinChannelResponseNorm(5, alpha=2.0)(x)[0, 0, 2, 2].item() == pytest.approx((1 + 2 / 25) ** -0.75)


def test_large_inputs_come_out_smaller_the_larger_they_are():
    x = 1e4 * make_case((2, 3, 6, 5)).x
    norm = WithinChannelResponseNorm()
    torch.testing.assert_close(norm(4 * x), norm(x) / 2, rtol=1e-4, atol=0)


def test_derivatives_of_first_and_second_order():
    x = make_case((2, 2, 4, 3)).x.requires_grad_()
    assert gradcheck(WithinChannelResponseNorm(3), x)
    assert gradgradcheck(WithinChannelResponseNorm(3), x)


def test_it_has_no_parameters_and_its_spec_carries_the_size():
    norm = norm_layer("lrn-within:3")(64, eps=1e-3, device="meta", dtype=torch.float64)
    assert repr(norm) == "WithinChannelResponseNorm(3, alpha=1.0, beta=0.75)"
    assert norm_layer("lrn-within")(64).size == 5
    assert not norm.state_dict()


@pytest.mark.parametrize("size", [0, 4, -3, 2.5])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(ArgumentError, match=f"size={size}"):
        WithinChannelResponseNorm(size)


@pytest.mark.parametrize("option", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1"])
def test_other_options_that_cannot_be_are_refused(option, value):
    with pytest.raises(ArgumentError, match=f"{option}={value!r}; expected a finite number >= 0"):
        WithinChannelResponseNorm(5, **{option: value})


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1, 1, 1)])
def test_an_input_without_spatial_axes_or_with_four_is_refused(shape):
    with pytest.raises(ShapeError, match=r"spatial axes; expected 1 to 3"):
        WithinChannelResponseNorm()(torch.randn(shape))
