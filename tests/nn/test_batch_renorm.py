"""Batch renormalisation against algorithm 1 of the paper, against batch norm, and against what ports make of it."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import assert_agrees, make_case, run
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import BatchRenorm, set_total_steps
from groupnorm.ops.reference import affine, per_channel, statistics
from groupnorm.sets import batch_set
from stepwise import assert_compiles, assert_follows, drifting, function_of
from tolerances import rounding

EPS = 1e-3
CORRECTING = {"warmup_steps": 0, "r_steps": 0, "d_steps": 0}
"""The corrections have their final limits."""


class Definition:
    """Algorithm 1 with a schedule in plain numbers; it remembers mu and sigma."""

    def __init__(self, channels, limits, momentum):
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.sigma = torch.full((channels,), math.sqrt(1 + EPS), dtype=torch.float64)
        self.limits, self.momentum, self.step = limits, momentum, 0

    def __call__(self, x, weight, bias):
        mean, variance = statistics(x, batch_set())
        sigma = (variance + EPS).sqrt()
        r_max, d_max = self.limits(self.step)
        r = (sigma / per_channel(self.sigma, x)).clamp(1 / r_max, r_max).detach()
        d = ((mean - per_channel(self.mean, x)) / per_channel(self.sigma, x)).clamp(-d_max, d_max).detach()
        self.mean = self.mean + self.momentum * (one_per_channel(mean) - self.mean)
        self.sigma = self.sigma + self.momentum * (one_per_channel(sigma) - self.sigma)
        self.step += 1
        return affine((x - mean) / sigma * r + d, weight, bias)


def one_per_channel(statistic):
    return statistic.detach().transpose(0, 1).flatten(1)[:, 0]


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (6, 4), (6, 4, 7), (6, 4, 2, 3, 2)])
def test_it_is_algorithm_1_at_every_step_of_the_schedule(shape):
    def limits(step):
        return 1 + 0.4 * min(max(step - 2, 0) / 5, 1), 0.5 * min(max(step - 2, 0) / 3, 1)

    layer = BatchRenorm(4, momentum=0.3, r_max=1.4, d_max=0.5, warmup_steps=2, r_steps=7, d_steps=5).double()
    definition = Definition(4, limits, momentum=0.3)
    cases = drifting(shape, 10)
    assert_follows(layer, definition, cases)
    x = cases[-1].x
    expected = (x - per_channel(definition.mean, x)) / per_channel(definition.sigma, x)
    y = affine(expected, layer.weight, layer.bias)
    torch.testing.assert_close(layer.eval()(x), y, rtol=0, atol=rounding(torch.float64, x, y))


@pytest.mark.parametrize("shape", [(8, 6, 3, 5), (8, 6)])
def test_without_corrections_it_is_batch_norm(shape):
    """For every moving average and at every step."""
    layer = BatchRenorm(6, r_max=1, d_max=0, **CORRECTING).double()
    for case in drifting(shape, 4):
        assert_agrees(run(function_of(layer), case), case, batch_set(), eps=EPS)


def test_it_starts_as_batch_norm():
    case = make_case((8, 6, 3, 5))
    assert_agrees(run(function_of(BatchRenorm(6).double()), case), case, batch_set(), eps=EPS)


def test_without_limits_training_computes_what_evaluation_does():
    """(x - mu_B) / sigma_B * r + d = (x - mu) / sigma: the identity that the method is made of."""
    layer = BatchRenorm(6, momentum=0.3, r_max=math.inf, d_max=1e9, **CORRECTING).double()
    for case in drifting((8, 6, 3, 5), 4):
        before = copy.deepcopy(layer).eval()(case.x)
        y = layer(case.x)
        torch.testing.assert_close(y, before, rtol=0, atol=rounding(torch.float64, case.x, y))


def test_the_gradient_is_that_of_batch_norm_times_r():
    *earlier, case = drifting((8, 6, 3, 5), 4)
    layer = BatchRenorm(6, momentum=0.3, r_max=1.5, d_max=0.2, **CORRECTING).double()
    for past in earlier:
        layer(past.x)
    sigma = (case.x.var((0, 2, 3), correction=0) + EPS).sqrt()
    r = (sigma / (layer.running_var + EPS).sqrt()).clamp(1 / 1.5, 1.5)
    assert (r > 1.01).all()
    batch = nn.BatchNorm2d(6, eps=EPS).double()
    got, plain = run(function_of(layer), case), run(function_of(batch), case)
    torch.testing.assert_close(
        got.dx, plain.dx * per_channel(r, case.x), rtol=0, atol=rounding(torch.float64, case.x, got.dx)
    )
    torch.testing.assert_close(got.dbias, plain.dbias)


def test_derivatives_of_first_and_second_order_where_the_corrections_are_constant():
    """In the warm-up, and at the limits; in between, the published gradient leaves r and d out."""
    case = make_case((4, 2, 3))
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    warm = function_of(BatchRenorm(2).double())
    limited = BatchRenorm(2, momentum=0.0, r_max=1.1, d_max=0.01, **CORRECTING).double()
    limited.running_mean.fill_(-9)
    limited.num_batches_tracked.fill_(9)
    for norm in (warm, function_of(limited)):
        assert gradcheck(norm, inputs)
        assert gradgradcheck(norm, inputs)


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [(0, 1, 0), (5_000, 1, 0), (15_000, 1 + 4 / 7, 2.5), (22_500, 2, 4.375), (25_000, 15 / 7, 5), (40_000, 3, 5)],
)
def test_the_published_schedule_and_its_shorter_copy(step, r_max, d_max):
    layer = BatchRenorm(4)
    layer.num_batches_tracked.fill_(step)
    published = [limit.item() for limit in layer.limits()]
    assert published == pytest.approx([r_max, d_max])
    for total in (2_000, 50_000, 2_000):  # each call starts from the published counts
        set_total_steps(layer, total)
        layer.num_batches_tracked.fill_(step * total // 100_000)
        assert [limit.item() for limit in layer.limits()] == pytest.approx([r_max, d_max])
    for total in (100_000, 10**6):
        set_total_steps(layer, total)
        layer.num_batches_tracked.fill_(step)
        assert [limit.item() for limit in layer.limits()] == published


def test_the_limits_jump_where_the_schedule_has_no_length():
    assert [limit.item() for limit in BatchRenorm(4, **CORRECTING).limits()] == [3, 5]
    layer = BatchRenorm(4, warmup_steps=1, r_steps=1, d_steps=1)
    assert [limit.item() for limit in layer.limits()] == [1, 0]
    layer(torch.randn(8, 4))
    assert [limit.item() for limit in layer.limits()] == [3, 5]


def test_corrections_without_a_limit_start_after_the_warm_up():
    layer = BatchRenorm(4, r_max=math.inf, d_max=math.inf, warmup_steps=1, r_steps=9, d_steps=9)
    assert [limit.item() for limit in layer.limits()] == [1, 0]
    layer(torch.randn(8, 4))
    layer(torch.randn(8, 4))
    assert [limit.item() for limit in layer.limits()] == [math.inf, math.inf]


def test_a_count_is_not_rounded_in_half_precision():
    layer = BatchRenorm(4).bfloat16()
    layer.num_batches_tracked.fill_(5_007)
    assert layer.limits()[0].item() == pytest.approx(1 + 2 * 7 / 35_000, abs=1e-7)


def test_batch_norm_with_the_same_state_evaluates_alike():
    layer = BatchRenorm(6, momentum=0.3).double()
    for case in drifting((8, 6, 3, 5), 3):
        layer(case.x)
    batch = nn.BatchNorm2d(6, eps=EPS).double()
    batch.load_state_dict(layer.state_dict())
    y = layer.eval()(case.x)
    torch.testing.assert_close(batch.eval()(case.x), y, rtol=0, atol=rounding(torch.float64, case.x, y))


def test_without_a_momentum_it_averages_all_batches_alike():
    cases = drifting((8, 6, 3, 5), 4)
    layer = BatchRenorm(6, momentum=None).double()
    for case in cases:
        layer(case.x)
    sigmas = torch.stack([(case.x.var((0, 2, 3), correction=0) + EPS).sqrt() for case in cases])
    torch.testing.assert_close((layer.running_var + EPS).sqrt(), sigmas.mean(0))
    torch.testing.assert_close(layer.running_mean, torch.stack([case.x.mean((0, 2, 3)) for case in cases]).mean(0))


def test_ports_that_average_the_variance_divide_by_more():
    """The paper and TensorFlow average sigma. CrossQ, Chainer and the Caffe port average its square.

    The root of the mean square is larger than the mean, so their evaluation shrinks what training shows the network,
    and the more so, the more the batches differ, which is when the method is used.
    """
    cases = drifting((2, 6, 2, 2), 12)
    layer = BatchRenorm(6, momentum=0.1).double()
    variance = torch.ones(6, dtype=torch.float64)
    for case in cases:
        layer(case.x)
        variance += 0.1 * (case.x.var((0, 2, 3), correction=0) - variance)
    sigma, of_the_variance = (layer.running_var + EPS).sqrt(), (variance + EPS).sqrt()
    assert (of_the_variance > 1.02 * sigma).all()


def test_chainer_counts_eps_twice_and_corrects_the_bias_for_the_running_variance_alone():
    """The corrections of a steady state should vanish: every batch is the same, so that r = 1 and d = 0."""
    x = make_case((2, 6, 1, 2)).x * 0.05
    layer = BatchRenorm(6, momentum=1.0, **CORRECTING).double()
    for _ in range(3):
        y = layer(x)
    batch = nn.BatchNorm2d(6, eps=EPS).double()
    torch.testing.assert_close(y, batch(x), rtol=0, atol=rounding(torch.float64, x, y))
    variance = x.var((0, 2, 3), correction=0) + EPS
    chainers = (variance * 4 / 3 + EPS).sqrt()  # running_var has eps already, and m / (m - 1) of four elements
    r = variance.sqrt() / chainers
    assert (r < 0.87).all()


def test_crossq_adds_eps_after_the_correction_instead_of_before():
    """(x - mean') / sqrt(var / r^2 + eps): with var near eps that is not r (x - mean) / sqrt(var + eps) + d."""
    case = make_case((8, 6, 3, 5))
    x = case.x * 0.03
    layer = BatchRenorm(6, momentum=0.0, r_max=3, d_max=5, **CORRECTING).double()
    layer.running_var.fill_(4e-4)
    layer.num_batches_tracked.fill_(9)
    mean, variance = statistics(x, batch_set())
    running = math.sqrt(4e-4 + EPS)
    r, d = (variance + EPS).sqrt() / running, mean / running
    crossq = (x - mean + d * variance.sqrt() / r) / (variance / r.square() + EPS).sqrt()
    exact = (x - mean) / (variance + EPS).sqrt() * r + d
    torch.testing.assert_close(layer(x), exact, rtol=0, atol=rounding(torch.float64, x, exact))
    assert (crossq - exact).abs().max() > 0.1


def test_a_compiled_backward_pass_uses_the_statistics_of_its_forward_pass():
    assert_compiles(BatchRenorm(4, momentum=0.3, warmup_steps=2, r_steps=6, d_steps=5), (4, 4, 3, 5), 5)


def test_training_goes_on_from_a_checkpoint_bit_by_bit():
    options = {"momentum": 0.3, "warmup_steps": 1, "r_steps": 6, "d_steps": 4}
    layer, other = BatchRenorm(4, **options), BatchRenorm(4, **options)
    *earlier, case = drifting((6, 4, 3), 4)
    for past in earlier:
        layer(past.x.float())
    other.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    torch.testing.assert_close(other(case.x.float()), layer(case.x.float()), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)


def test_constant_channels_leave_sigma_at_the_root_of_eps():
    layer = BatchRenorm(2, momentum=0.5, **CORRECTING)
    for _ in range(60):
        y = layer(torch.full((4, 2, 3), 7.0))
    assert y.isfinite().all()
    torch.testing.assert_close(layer.running_var, torch.zeros(2), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, r"r_max=0.5; expected a number of at least 1, which is batch norm"),
        ({"d_max": -1}, r"d_max=-1; expected a number of at least 0"),
        ({"d_max": math.nan}, r"d_max=nan"),
        ({"warmup_steps": -1}, r"warmup_steps=-1; expected at least 0"),
        ({"warmup_steps": 2.5}, r"warmup_steps=2.5 is of type float"),
        ({"r_steps": 4_999}, r"r_steps=4999; expected at least 5000, where the limits begin to grow"),
        ({"d_steps": 10}, r"d_steps=10; expected at least 5000"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        BatchRenorm(4, **options)


def test_one_element_is_refused():
    with pytest.raises(SingleElementError, match=r"input \(1, 4, 1, 1\) has 1 element .* use a larger batch"):
        BatchRenorm(4)(torch.randn(1, 4, 1, 1))


def test_the_repr_names_the_schedule():
    assert repr(BatchRenorm(4)) == (
        "BatchRenorm(4, eps=0.001, momentum=0.01, affine=True, r_max=3.0, d_max=5.0, warmup_steps=5000, "
        "r_steps=40000, d_steps=25000)"
    )
