"""Cross-iteration batch norm against its equations with whole Jacobians, and what it needs around it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev

from groupnorm import norm_layer
from groupnorm.errors import ArgumentError, SingleElementError, WiringError
from groupnorm.nn import CrossIterationBatchNorm, set_total_steps, standardize_weight_, wire_
from groupnorm.nn.cross_iteration_batch_norm import _Past
from groupnorm.ops.reference import affine, per_channel
from tolerances import rounding

AXES = (0, 2, 3)


def network(window=3, steps=0, **options):
    """A convolution and the norm behind it, in float64."""
    norm = CrossIterationBatchNorm(5, window, burn_in_steps=steps, **options)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, bias=False), norm).double()
    wire_(model, torch.randn(2, 2, 5, 4, dtype=torch.float64))
    return model


def definition(inputs, weights, norm):
    """Equations 5 to 9 for the last of several iterations: raw moments, full Jacobians, no algebra."""

    def mean_of(x):
        return lambda w: F.conv2d(x, w).mean(AXES)

    def square_of(x):
        return lambda w: F.conv2d(x, w).square().mean(AXES)

    now = weights[-1]
    means, squares = [mean_of(inputs[-1])(now)], [square_of(inputs[-1])(now)]
    for x, then in list(zip(inputs, weights, strict=True))[-norm.window : -1]:
        step = (now - then).detach()
        moments = []
        for moment in (mean_of(x), square_of(x)):
            slope = jacrev(moment)(then)  # [C, C, I, kh, kw]: nothing assumed about which rows matter
            moments.append((moment(then) + torch.einsum("coihw,oihw->c", slope, step)).detach())
        means.append(moments[0])
        squares.append(torch.maximum(moments[1], moments[0].square()))
    mean, square = torch.stack(means).mean(0), torch.stack(squares).mean(0)
    y = F.conv2d(inputs[-1], now)
    y = (y - per_channel(mean, y)) / per_channel((square - mean.square() + norm.eps).sqrt(), y)
    return affine(y, norm.weight, norm.bias)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_it_is_the_equations_over_several_iterations(window):
    model = network(window)
    conv, norm = model
    inputs, weights = [], []
    for step in range(5):
        x = torch.randn(3, 2, 6, 5, dtype=torch.float64, requires_grad=True)
        inputs.append(x)
        weights.append(conv.weight.detach().clone().requires_grad_())
        upstream = torch.randn(3, 5, 4, 3, dtype=torch.float64)
        wanted = definition(inputs, weights, norm)
        leaves = (x, weights[-1], norm.weight, norm.bias)
        expected = torch.autograd.grad(wanted, leaves, upstream)
        y = model(x)
        actual = torch.autograd.grad(y, (x, conv.weight, norm.weight, norm.bias), upstream)
        near = {"rtol": 0, "atol": 10 * rounding(torch.float64, x, torch.cat([g.flatten() for g in expected]))}
        torch.testing.assert_close(y, wanted, msg=lambda m, s=step: f"iteration {s}: {m}", **near)
        torch.testing.assert_close(actual, expected, **near)
        with torch.no_grad():
            conv.weight -= 0.02 * actual[1]


def test_compensation_matters_and_is_first_order():
    """The error of the compensated mean of a past iteration falls with the square of the step of the weight."""
    x = torch.randn(8, 2, 6, 5, dtype=torch.float64)
    errors = []
    for size in (1e-2, 1e-3):
        model = network(2)
        conv, norm = model
        model(x.clone().requires_grad_())
        with torch.no_grad():
            conv.weight += size * torch.randn(conv.weight.shape, dtype=torch.float64, generator=torch.manual_seed(0))
        (past,) = norm._past
        y = conv(x)
        mean, variance = past.at(conv.weight)
        torch.testing.assert_close(mean, y.mean(AXES), rtol=0, atol=1e-12)  # the mean is linear in the weight
        errors.append((variance - y.var(AXES, correction=0)).abs().max().item())
        assert errors[-1] < (past.variance - y.var(AXES, correction=0)).abs().max().item()
    assert errors[1] < errors[0] / 50


def test_the_same_batch_and_weight_again_is_batch_norm():
    model = network(4)
    batch_norm = nn.BatchNorm2d(5).double()
    x = torch.randn(4, 2, 6, 5, dtype=torch.float64)
    for _ in range(3):
        y = model(x)
        torch.testing.assert_close(y, batch_norm(model[0](x)))
    torch.testing.assert_close(model[1].running_var, batch_norm.running_var)
    torch.testing.assert_close(model.eval()(x), batch_norm.eval()(model[0](x)))


def test_the_authors_unbiased_variance_is_larger_and_their_eps_outside_the_root_counts_more():
    model = network(4, steps=10, eps=1e-3)
    x = 0.05 * torch.randn(2, 2, 4, 3, dtype=torch.float64)
    y, m = model[0](x), 2 * 2 * 1
    centred = y - per_channel(y.mean(AXES), y)
    deviation = y.var(AXES, correction=0).sqrt()
    torch.testing.assert_close(model(x), centred / per_channel((deviation.square() + 1e-3).sqrt(), y))
    theirs = centred / per_channel(y.var(AXES).sqrt() + 1e-3, y)
    unbiased = deviation * (m / (m - 1)) ** 0.5
    torch.testing.assert_close(theirs, centred / per_channel(unbiased + 1e-3, y))
    assert ((model(x) - theirs).abs().amax(AXES) > 0.1 * theirs.abs().amax(AXES)).all()


def test_the_burn_in_is_batch_norm_and_keeps_no_window():
    model = network(4, steps=2)
    batch_norm = nn.BatchNorm2d(5).double()
    for step in range(3):
        x = torch.randn(4, 2, 6, 5, dtype=torch.float64)
        torch.testing.assert_close(model(x), batch_norm(model[0](x)))
        assert len(model[1]._past) == (step == 2)


@pytest.mark.parametrize(("steps", "burn_in"), [(1, 0), (1_000, 80), (500_000, 40_000), (9_000_000, 40_000)])
def test_the_schedule_burns_in_for_8_of_100_epochs(steps, burn_in):
    norm = CrossIterationBatchNorm(4)
    assert norm._burn_in == norm.burn_in_steps == 40_000
    assert set_total_steps(norm, steps) == 1
    assert norm._burn_in == burn_in
    shorter = CrossIterationBatchNorm(4, burn_in_steps=10)
    set_total_steps(shorter, steps)
    assert shorter._burn_in == min(10, burn_in)


def test_the_window_survives_a_checkpoint_and_batch_norms_checkpoint_loads():
    model = network(3)
    for _ in range(3):
        model(torch.randn(4, 2, 6, 5, dtype=torch.float64))
    other = network(3)
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 2, 6, 5, dtype=torch.float64)
    assert torch.equal(other(x), model(x))
    other[1].load_state_dict(nn.BatchNorm2d(5).state_dict())
    assert other[1]._past == []


def test_standardised_weights_and_linear_layers_have_their_window_too():
    convolution = standardize_weight_(nn.Conv2d(2, 5, 3, bias=False))
    for layer, x in ((convolution, torch.randn(4, 2, 6, 5)), (nn.Linear(6, 5), torch.randn(4, 6))):
        model = nn.Sequential(layer, CrossIterationBatchNorm(5, burn_in_steps=0))
        wire_(model, x)
        for _ in range(3):
            model(x)
        assert all(past.mean_slope.any() for past in model[1]._past)


def test_without_gradients_it_is_batch_norm_and_keeps_no_window():
    model = network(3)
    x = torch.randn(4, 2, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), nn.BatchNorm2d(5).double()(model[0](x)))
    assert model[1]._past == []


def test_the_window_moves_with_the_module_and_is_emptied_with_the_running_statistics():
    model = network(3)
    model(torch.randn(4, 2, 6, 5, dtype=torch.float64))
    model.float()
    assert {t.dtype for past in model[1]._past for t in vars(past).values()} == {torch.float32}
    model[1].reset_parameters()
    assert (model[1]._past, model[1]._steps, model[1].num_batches_tracked) == ([], 0, 0)


def test_a_second_moment_below_the_square_of_the_mean_counts_as_that():
    """Far from where the slopes hold, the first order may give a negative variance."""
    mean, variance = torch.zeros(1, 2), torch.ones(2)
    past = _Past(mean[0], variance, torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 3))
    moved, clamped = past.at(torch.full((2, 3), 2.0))
    assert moved.tolist() == [6.0, 6.0]
    assert clamped.tolist() == [0.0, 0.0]


def test_a_copied_model_differentiates_by_its_own_convolution():
    model = network(3)
    twin = copy.deepcopy(model)
    assert twin[1]._layer[0] is twin[0]
    assert sum(1 for _ in twin.parameters()) == 3


def test_what_it_needs_is_said():
    norm = norm_layer("cbn")(5)
    with pytest.raises(WiringError, match=r"call groupnorm.wire_\(model, example_input\)"):
        norm(torch.randn(4, 5, 3, 3))
    with pytest.raises(ArgumentError, match="expected one row for each of the 5 channels"):
        norm.attach(nn.Conv2d(5, 4, 3))
    with pytest.raises(ArgumentError, match="after a transposed convolution"):
        norm.attach(nn.ConvTranspose2d(5, 5, 3))
    with pytest.raises(ArgumentError, match="is made of several parameters"):
        norm.attach(nn.utils.parametrizations.weight_norm(nn.Conv2d(5, 5, 3)))
    norm.attach(nn.Conv2d(5, 5, 3))
    set_total_steps(norm, 1)
    with pytest.raises(WiringError, match="does not come from"):
        norm(torch.randn(4, 5, 3, 3, requires_grad=True))
    with pytest.raises(SingleElementError):
        network()(torch.randn(1, 2, 3, 3, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="window=0"):
        CrossIterationBatchNorm(5, window=0)
