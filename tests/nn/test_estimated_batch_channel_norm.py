"""Batch-channel norm with estimated statistics: the order of its update, its schedule, and the speed that was 0."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import make_case, with_gradients
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import BatchChannelNorm, EstimatedBatchChannelNorm, set_total_steps
from groupnorm.ops.reference import affine, normalize, per_channel
from groupnorm.sets import group_set
from tolerances import rounding

PARAMETERS = ("weight", "bias", "batch_weight", "batch_bias")


def function_of(layer):
    """The layer as a function of its input and all four parameters."""
    return lambda x, *values: torch.func.functional_call(layer, dict(zip(PARAMETERS, values, strict=True)), (x,))


def inputs_of(shape):
    case, inner = make_case(shape), make_case(shape)
    return [case.x, case.weight, case.bias, inner.weight, inner.bias], case.upstream


class Definition:
    """The estimates, moved step by step as the source does, and the two norms."""

    def __init__(self, channels, groups, total_steps, momentum=0.1):
        self.mean, self.variance = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
        self.groups, self.total_steps, self.momentum, self.steps = groups, total_steps, momentum, 0

    def update(self, x):
        self.steps += 1
        s = max(1 / self.steps, self.momentum * max(1 - self.steps / self.total_steps, 0.1))
        axes = (0, *range(2, x.dim()))
        old = self.mean if self.steps > 1 else x.mean(axes)  # before the first step there is no estimate
        around_old = (x - per_channel(old, x)).square().mean(axes)
        self.mean = (1 - s) * self.mean + s * x.mean(axes)
        self.variance = (1 - s) * self.variance + s * around_old

    def __call__(self, x, weight, bias, batch_weight, batch_bias, eps=1e-5):
        x = (x - per_channel(self.mean, x)) / per_channel((self.variance + eps).sqrt(), x)
        return normalize(affine(x, batch_weight, batch_bias), group_set(self.groups), weight, bias, eps)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 6, 3, 5), 3), ((2, 6), 1), ((2, 6, 4), 3), ((2, 6, 2, 3, 2), 3), ((1, 6, 3, 5), 3), ((1, 6), 1)],
)
def test_each_step_is_the_definition_with_no_gradient_through_the_estimates(shape, groups):
    layer, definition = EstimatedBatchChannelNorm(6, groups).double(), Definition(6, groups, 20)
    layer.set_total_steps(20)
    for _ in range(25):
        inputs, upstream = inputs_of(shape)
        definition.update(inputs[0])
        actual = with_gradients(function_of(layer), inputs, upstream)
        expected = with_gradients(definition, inputs, upstream)
        for got, want in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=10 * rounding(torch.float64, inputs[0], want))
        torch.testing.assert_close(layer.running_mean, definition.mean)
        torch.testing.assert_close(layer.running_var, definition.variance)


def test_evaluation_is_the_same_formula_without_the_update():
    layer = EstimatedBatchChannelNorm(6, 3).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    for _ in range(3):
        x = make_case((2, 6, 3, 5)).x
        y = layer(x)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    torch.testing.assert_close(layer.eval()(x), y, rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    plain = BatchChannelNorm(6, 3).double().eval()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain(x), y, rtol=0, atol=0)


def test_derivatives_of_first_and_second_order():
    """In evaluation, where the estimates stand still while the input is varied."""
    inputs, _ = inputs_of((2, 4, 3))
    inputs = [t.requires_grad_() for t in inputs]
    layer = EstimatedBatchChannelNorm(4, 2).double()
    layer(inputs[0].detach())
    assert gradcheck(function_of(layer.eval()), inputs)
    assert gradgradcheck(function_of(layer), inputs)


@pytest.mark.parametrize(
    ("step", "speed"),
    [
        *[(1, 1.0), (2, 0.5), (5, 0.2)],  # the average of all steps so far
        *[(20, 0.098), (500, 0.05), (800, 0.02)],  # along a line
        *[(900, 0.01), (990, 0.01), (1000, 0.01), (5000, 0.01)],  # a tenth, and no slower if the training goes on
    ],
)
def test_the_speed_averages_first_and_then_falls_with_the_training(step, speed):
    layer = EstimatedBatchChannelNorm(6, 3)
    assert set_total_steps(nn.Sequential(layer), 1000) == 1
    layer.num_batches_tracked.fill_(step)
    assert layer.newest() == pytest.approx(speed)


@pytest.mark.parametrize(
    ("step", "speed"), [(10, 0.1), (1_000, 0.099), (50_000, 0.05), (100_000, 0.01), (500_000, 0.01)]
)
def test_a_training_of_unknown_length_is_taken_for_100_000_steps(step, speed):
    layer = EstimatedBatchChannelNorm(6, 3)
    layer.num_batches_tracked.fill_(step)
    assert layer.newest() == pytest.approx(speed)


def test_momentum_none_averages_all_steps():
    layer, batches = EstimatedBatchChannelNorm(6, 3, momentum=None).double(), make_case((10, 6, 3, 5)).x
    for x in batches.split(2):
        layer(x)
    torch.testing.assert_close(layer.running_mean, batches.mean((0, 2, 3)))


def test_the_estimates_reach_the_statistics_of_the_data_from_batches_of_two():
    """Mean 3, deviation 2: one batch of two samples with an offset each is far off, the estimates are not."""
    layer = EstimatedBatchChannelNorm(4, 2)
    layer.set_total_steps(2000)
    alone = []
    for _ in range(2000):
        x = 3 + 2 * (0.8**0.5 * torch.randn(2, 4, 1, 1) + 0.2**0.5 * torch.randn(2, 4, 4, 4))
        layer(x)
        alone.append(x.var((0, 2, 3), correction=0))
    torch.testing.assert_close(layer.running_mean, torch.full((4,), 3.0), rtol=0, atol=0.3)
    torch.testing.assert_close(layer.running_var, torch.full((4,), 4.0), rtol=0.1, atol=0)
    assert torch.stack(alone).mean() < 2.5  # what batch norm divides by: it misses half of what is between samples


def test_a_speed_of_0_leaves_the_estimates_where_they_start():
    """The authors' speed is a buffer of 0 that the training has to set: without it their layer is group norm alone."""
    layer, authors = EstimatedBatchChannelNorm(6, 3).double(), Definition(6, 3, 1, momentum=0)
    authors.steps = 10**18  # so that 1 / steps is nothing, too
    ones, zeros = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for _ in range(5):
        x = make_case((2, 6, 3, 5)).x * torch.arange(1, 7).view(1, 6, 1, 1)
        y = layer(x)
        authors.update(x)
    group_norm = normalize(x / (1 + layer.eps) ** 0.5, group_set(3))
    torch.testing.assert_close(authors(x, ones, zeros, ones, zeros), group_norm)
    assert (y - group_norm).abs().max() > 0.1


def test_zero_in_weight_silences_the_layer():
    layer = EstimatedBatchChannelNorm(6, 3)
    nn.init.zeros_(layer.weight)
    assert not layer(torch.randn(2, 6, 5, 5)).any()


def test_two_passes_before_the_backward_keep_their_gradients():
    """The estimates move between the passes, in place; each pass has saved what it needs."""
    layer, (first, second) = EstimatedBatchChannelNorm(6, 3).double(), make_case((4, 6, 3, 5)).x.split(2)
    layer(second)
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    copy = EstimatedBatchChannelNorm(6, 3).double()
    copy.load_state_dict(layer.state_dict())
    upstream = torch.randn_like(first)
    alone = torch.autograd.grad(copy(first), first, upstream)
    y = layer(first)
    layer(second)
    torch.testing.assert_close(torch.autograd.grad(y, first, upstream), alone, rtol=0, atol=0)


def test_one_element_per_group_is_refused_and_changes_nothing():
    layer = EstimatedBatchChannelNorm(6, 6)
    with pytest.raises(SingleElementError, match="num_groups=6 has 1 element per group"):
        layer(torch.randn(4, 6))
    torch.testing.assert_close(layer.state_dict(), EstimatedBatchChannelNorm(6, 6).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [0, 2.5])
def test_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(ArgumentError, match=f"steps={steps}"):
        EstimatedBatchChannelNorm(6, 3).set_total_steps(steps)
