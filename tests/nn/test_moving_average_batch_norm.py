"""Moving average batch norm against its published forward and backward pass, written with lists of past statistics."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from agreement import Outcome, make_case, run
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import MovingAverageBatchNorm, set_total_steps
from groupnorm.ops.reference import affine, average, per_channel
from groupnorm.sets import batch_set
from stepwise import assert_close, assert_compiles, drifting, function_of, train_step
from tolerances import rounding

SHORT = {"real_batch": 6, "momentum": 0.2, "warmup_steps": 5, "renorm_steps": 7, "r_max": 1.1}
"""A schedule whose every part a test of ten steps passes through."""


class Definition:
    """The source's equations with every past statistic in a list."""

    def __init__(self, channels, *, real_batch, momentum, warmup_steps, renorm_steps, r_max, eps=1e-5):
        self.chi2, self.psi = [], []
        self.running = torch.ones(channels, dtype=torch.float64)
        self.real_batch, self.momentum, self.r_max, self.eps = real_batch, momentum, r_max, eps
        self.warmup_steps, self.renorm_steps = warmup_steps, renorm_steps

    def train_step(self, case):
        x = case.x
        self.chi2.append(one_per_channel(average(x.square(), batch_set())))
        step = len(self.chi2)
        window = max(1, self.real_batch // len(x))
        many = window if step > window and step >= self.warmup_steps else 1
        chi2 = torch.stack(self.chi2[-many:]).mean(0)
        sigma, running = (chi2 + self.eps).sqrt(), (self.running + self.eps).sqrt()
        corrects = step > max(self.renorm_steps, self.warmup_steps)
        r = (sigma / running).clamp(1 / self.r_max, self.r_max) if corrects else torch.ones_like(sigma)
        self.running = (1 - self.momentum) * self.running + self.momentum * chi2
        z = x / per_channel(sigma, x)
        normalized = z * per_channel(r, x)

        g = case.upstream * per_channel(case.weight * r, x)
        self.psi.append(one_per_channel(average(g * z, batch_set())))
        psi = torch.stack(self.psi[-many:]).mean(0)
        return Outcome(
            affine(normalized, case.weight, case.bias),
            (g - z * per_channel(psi, x)) / per_channel(sigma, x),
            (case.upstream * normalized).transpose(0, 1).flatten(1).sum(1),
            case.upstream.transpose(0, 1).flatten(1).sum(1),
        )


def one_per_channel(statistic):
    return statistic.transpose(0, 1).flatten(1)[:, 0]


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 4), (2, 4, 7), (2, 4, 2, 3, 2)])
@pytest.mark.parametrize(
    "options", [SHORT, {**SHORT, "real_batch": 3}, {**SHORT, "warmup_steps": 0}, {**SHORT, "renorm_steps": 2}]
)
def test_it_is_the_published_forward_and_backward_at_every_step(shape, options):
    layer, definition = MovingAverageBatchNorm(4, **options).double(), Definition(4, **options)
    cases = drifting(shape, 10)
    for case in cases:
        assert_close(run(function_of(layer), case), definition.train_step(case), case.x)
    x = cases[-1].x
    y = affine(x / per_channel((definition.running + 1e-5).sqrt(), x), layer.weight, layer.bias)
    torch.testing.assert_close(layer.eval()(x), y, rtol=0, atol=rounding(torch.float64, x, y))
    assert not layer.running_mean.any()


def scaled_by(step, *totals):
    """What the output of a step is scaled by: "batch", "window" or "running"."""
    layer = MovingAverageBatchNorm(4, real_batch=4).double()
    for total in totals:
        set_total_steps(layer, total)
    first, second = make_case((2, 4, 3, 5)).x, make_case((2, 4, 3, 5)).x * 2
    layer(first)
    layer.num_batches_tracked.fill_(step - 1)
    squares = [x.square().mean((0, 2, 3)) for x in (first, second)]
    expected = {"batch": squares[1], "window": sum(squares) / 2, "running": layer.running_var.clone()}
    y = layer(second)
    (name,) = (n for n, square in expected.items() if torch.allclose(y, second * per_channel(square.rsqrt(), y), 1e-4))
    return name


@pytest.mark.parametrize(
    ("step", "name"), [(99, "batch"), (100, "window"), (1_000, "window"), (1_001, "running"), (10**6, "running")]
)
def test_each_part_of_the_schedule_begins_at_its_published_step(step, name):
    """The window from step 100 on; r, which replaces the window by the running average, after step 1,000."""
    assert scaled_by(step) == name
    assert scaled_by(step, 20, 10_000) == name  # each call starts from the published counts


@pytest.mark.parametrize(
    ("total", "step", "name"),
    [
        *((2_000, step, name) for step, name in [(99, "batch"), (100, "window"), (200, "window"), (201, "running")]),
        *((500, step, name) for step, name in [(49, "batch"), (50, "window"), (51, "running"), (500, "running")]),
        *((5, step, name) for step, name in [(2, "running"), (3, "running")]),
    ],
)
def test_no_count_is_more_than_a_tenth_of_the_training(total, step, name):
    assert scaled_by(step, total) == name


def test_the_window_is_not_used_before_it_is_full():
    layer = MovingAverageBatchNorm(4, real_batch=8, warmup_steps=0).double()
    for case in drifting((2, 4, 3), 4):
        y = layer(case.x)
        torch.testing.assert_close(y.square().mean((0, 2)), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-4)
    assert (layer(case.x).square().mean((0, 2)) - 1).abs().min() > 0.05


def test_in_the_warm_up_the_gradient_is_the_derivative():
    case = make_case((4, 2, 3))
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    assert gradcheck(function_of(MovingAverageBatchNorm(2).double()), inputs)


def test_with_a_window_it_is_not():
    """The derivative of x / constant is g / constant; the published gradient takes the average of Psi away."""
    layer = MovingAverageBatchNorm(4, **SHORT).double()
    *earlier, case = drifting((2, 4, 3, 5), 6)
    for past in earlier:
        run(function_of(layer), past)
    got = run(function_of(layer), case)
    sigma = (layer.past_chi2[-3:].mean(0) + 1e-5).sqrt()
    z = case.x / per_channel(sigma, case.x)
    g = case.upstream * per_channel(case.weight, case.x)
    left_out = per_channel(layer.past_psi[-3:].mean(0), case.x) * z
    torch.testing.assert_close(got.dx, (g - left_out) / per_channel(sigma, case.x))
    assert (left_out / per_channel(sigma, case.x)).abs().max() > 0.01


def test_nothing_is_centred():
    """A channel of the same sign stays so; batch norm would send it around 0."""
    x = make_case((2, 4, 3, 5)).x.abs()
    assert (MovingAverageBatchNorm(4).double()(x) >= 0).all()


def test_training_goes_on_from_a_checkpoint_bit_by_bit():
    layer, other = MovingAverageBatchNorm(4, **SHORT).double(), MovingAverageBatchNorm(4, **SHORT).double()
    *earlier, case = drifting((2, 4, 3, 5), 9)
    for past in earlier:
        train_step(layer, past)
    other.load_state_dict(layer.state_dict())
    got, expected = train_step(other, case), train_step(layer, case)
    for name, want in vars(expected).items():
        torch.testing.assert_close(getattr(got, name), want, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)
    assert list(layer.state_dict())[-2:] == ["past_chi2", "past_psi"]


def test_a_checkpoint_of_batch_norm_loads_evaluates_alike_and_starts_the_schedule():
    batch, layer = nn.BatchNorm2d(4).double(), MovingAverageBatchNorm(4, **SHORT).double()
    for case in drifting((2, 4, 3, 5), 5):
        batch(case.x)
        train_step(layer, case)
    layer.load_state_dict(batch.state_dict())
    y = batch.eval()(case.x)
    torch.testing.assert_close(layer.eval()(case.x), y, rtol=0, atol=rounding(torch.float64, case.x, y))
    assert (layer.num_batches_tracked, layer.past_chi2.any(), layer.past_psi.any()) == (0, False, False)
    assert batch.num_batches_tracked == 5


def test_a_compiled_backward_pass_moves_the_window_as_an_eager_one():
    assert_compiles(MovingAverageBatchNorm(4, **{**SHORT, "warmup_steps": 3, "renorm_steps": 4}), (2, 4, 3, 5), 6)


def test_two_forward_passes_before_their_backward_passes():
    """A layer that is used twice, whose second backward pass finds the window moved by the first."""
    layer = MovingAverageBatchNorm(4, **SHORT).double()
    cases = drifting((2, 4, 3, 5), 8)
    for case in cases:
        run(function_of(layer), case)
    before = layer.past_psi.clone()
    x = cases[-1].x.requires_grad_()
    layer(layer(x)).backward(cases[-1].upstream)
    torch.testing.assert_close(layer.past_psi[0], before[2])
    assert x.grad.isfinite().all()


def test_an_overflow_does_not_stay_in_the_window():
    layer = MovingAverageBatchNorm(4, **SHORT).double()
    *earlier, case = drifting((2, 4, 3, 5), 8)
    for past in earlier:
        train_step(layer, past)
    before = layer.past_psi.clone()
    upstream = case.upstream.clone()
    upstream[0, 1, 0, 0] = math.inf
    x = case.x.clone().requires_grad_()
    layer(x).backward(upstream)
    assert not x.grad[:, 1].isfinite().all()  # a loss scaler sees it
    torch.testing.assert_close(layer.past_psi[:, 1], before[:, 1], rtol=0, atol=0)
    torch.testing.assert_close(layer.past_psi[:-1, 0], before[1:, 0], rtol=0, atol=0)
    assert train_step(layer, case).dx.isfinite().all()


def test_the_gradient_cannot_be_differentiated_again():
    x = make_case((2, 4, 3)).x.requires_grad_()
    (slope,) = torch.autograd.grad(MovingAverageBatchNorm(4).double()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_resetting_empties_the_window():
    layer = MovingAverageBatchNorm(4, **SHORT)
    fresh = {key: value.clone() for key, value in layer.state_dict().items()}
    for case in drifting((2, 4, 3), 3):
        run(function_of(layer), case)
    assert layer.past_chi2.any()
    assert layer.past_psi.any()
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), fresh, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"real_batch": 0}, r"real_batch=0; expected at least 1"),
        ({"r_max": 0.5}, r"r_max=0.5; expected a number of at least 1, which corrects nothing"),
        ({"warmup_steps": -1}, r"warmup_steps=-1; expected at least 0"),
        ({"renorm_steps": 1.5}, r"renorm_steps=1.5 is of type float"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        MovingAverageBatchNorm(4, **options)


def test_one_element_is_refused():
    with pytest.raises(SingleElementError, match=r"input \(1, 4, 1\) has 1 element .* the sign alone"):
        MovingAverageBatchNorm(4)(torch.randn(1, 4, 1))


def test_the_repr_names_real_batch_and_schedule():
    assert repr(MovingAverageBatchNorm(4)) == (
        "MovingAverageBatchNorm(4, eps=1e-05, momentum=0.02, affine=True, real_batch=32, r_max=5.0, warmup_steps=100, "
        "renorm_steps=1000)"
    )
