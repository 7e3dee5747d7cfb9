"""Power norm against its published forward and backward pass, and against algorithm 2 of the paper."""

import math

import pytest
import torch
from torch import nn

from agreement import Outcome, make_case, run
from groupnorm.errors import ArgumentError, DivisibilityError, SingleElementError
from groupnorm.nn import PowerNorm, set_total_steps
from groupnorm.ops.reference import affine, average, per_channel
from groupnorm.sets import EACH, Blocks, SharedSet, batch_set
from stepwise import assert_close, assert_compiles, drifting, function_of, train_step
from tolerances import rounding

EPS = 1e-5
SHORT = {"momentum": 0.2, "backward_momentum": 0.3, "warmup_steps": 4}


class Definition:
    """The authors' two updates of the running mean square, and their ``ema_gz``, which is nu / m."""

    def __init__(self, channels, *, momentum, backward_momentum, warmup_steps, num_groups=1):
        self.running = torch.ones(channels, dtype=torch.float64)
        self.ema_gz = torch.zeros(channels, dtype=torch.float64)
        self.momentum, self.backward_momentum, self.warmup_steps = momentum, backward_momentum, warmup_steps
        self.position = SharedSet(samples=EACH, channels=Blocks(count=num_groups), positions=EACH)
        self.step = 0

    def scale_groups(self, x):
        return x / (average(x.square(), self.position) + EPS).sqrt()

    def train_step(self, case):
        x = case.x.clone().requires_grad_()
        scaled = self.scale_groups(x)
        u = scaled.detach()
        self.step += 1
        batch = one_per_channel(average(u.square(), batch_set()))
        z = u / per_channel((batch if self.step <= self.warmup_steps else self.running).add(EPS).sqrt(), u)
        if self.step < self.warmup_steps:
            self.running = self.running * (self.step - 1) / self.step + batch / self.step
        self.running = (1 - self.momentum) * self.running + self.momentum * batch

        g = case.upstream * per_channel(case.weight, u)
        g = g - self.backward_momentum * per_channel(self.ema_gz, u) * z
        self.ema_gz = self.ema_gz + one_per_channel(average(g * z, batch_set()))
        du = g / per_channel((batch + EPS).sqrt(), u)
        return Outcome(
            affine(z, case.weight, case.bias),
            torch.autograd.grad(scaled, x, du)[0],
            (case.upstream * z).transpose(0, 1).flatten(1).sum(1),
            case.upstream.transpose(0, 1).flatten(1).sum(1),
        )


def one_per_channel(statistic):
    return statistic.transpose(0, 1).flatten(1)[:, 0]


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (6, 4), (6, 4, 7), (6, 4, 2, 3, 2)])
@pytest.mark.parametrize("options", [SHORT, {**SHORT, "num_groups": 2}, {**SHORT, "warmup_steps": 0}])
def test_it_is_the_published_forward_and_backward_at_every_step(shape, options):
    layer, definition = PowerNorm(4, **options).double(), Definition(4, **options)
    cases = drifting(shape, 8)
    for case in cases:
        assert_close(run(function_of(layer), case), definition.train_step(case), case.x)
    u = definition.scale_groups(cases[-1].x)
    y = affine(u / per_channel((definition.running + EPS).sqrt(), u), layer.weight, layer.bias)
    torch.testing.assert_close(layer.eval()(cases[-1].x), y, rtol=0, atol=rounding(torch.float64, cases[-1].x, y))
    assert not layer.running_mean.any()


def test_in_the_warm_up_the_forward_pass_has_the_statistics_of_the_batch():
    layer = PowerNorm(6, warmup_steps=2).double()
    squares = [layer(case.x).square().mean((0, 2, 3)) for case in drifting((8, 6, 3, 5), 3)]
    for square in squares[:2]:
        torch.testing.assert_close(square, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-4)
    assert (squares[2] - 1).abs().min() > 1e-3


def test_the_running_average_starts_with_the_first_batch():
    layer = PowerNorm(6).double()
    x = make_case((8, 6, 3, 5)).x
    layer(x)
    u = x / (x.square().mean(1, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(layer.running_var, u.square().mean((0, 2, 3)))


def test_without_a_momentum_it_averages_all_batches_alike():
    layer = PowerNorm(6, momentum=None).double()
    cases = drifting((8, 6, 3, 5), 3)
    scaled = [case.x / (case.x.square().mean(1, keepdim=True) + EPS).sqrt() for case in cases]
    for case in cases:
        layer(case.x)
    torch.testing.assert_close(layer.running_var, torch.stack([u.square().mean((0, 2, 3)) for u in scaled]).mean(0))


def test_the_paper_and_the_code_have_the_same_nu_and_another_divisor():
    """Algorithm 2: nu <- nu (1 - m Gamma) + m Lambda, and the gradient is divided by the running psi.

    The code's ``ema_gz`` is nu / m, which is the same. It divides by psi of the batch, though, which is why the two
    gradients are in the ratio of the two.
    """
    layer = PowerNorm(6, warmup_steps=0).double()
    nu = torch.zeros(6, dtype=torch.float64)
    for case in drifting((8, 6, 3, 5), 5):
        u = (case.x / (case.x.square().mean(1, keepdim=True) + EPS).sqrt()).requires_grad_()
        psi = (layer.running_var + EPS).sqrt()
        z = u.detach() / per_channel(psi, u)
        g = case.upstream * per_channel(layer.weight.detach(), u)
        papers = (g - per_channel(nu, u) * z) / per_channel(psi, u)
        gamma, lambda_ = z.square().mean((0, 2, 3)), (g * z).mean((0, 2, 3))
        nu = nu * (1 - 0.1 * gamma) + 0.1 * lambda_

        _WithoutGroupScaling.of(layer)(u).backward(case.upstream)
        torch.testing.assert_close(layer.nu, nu)
        batch = (u.detach().square().mean((0, 2, 3)) + EPS).sqrt()
        torch.testing.assert_close(u.grad * per_channel(batch / psi, u), papers)
    assert ((batch / psi - 1).abs() > 1e-3).all()


class _WithoutGroupScaling(PowerNorm):
    """Shares the state of another layer, and takes its input as scaled already."""

    @classmethod
    def of(cls, layer):
        twin = cls.__new__(cls)
        twin.__dict__ = layer.__dict__
        return twin

    def _scale_groups(self, x):
        return x


def test_a_position_is_scaled_by_its_channels():
    """A factor of each position leaves no trace; the positions of batch norm would pull at each other."""
    x = make_case((4, 6, 3, 5)).x
    factors = torch.rand(4, 1, 3, 5, dtype=torch.float64) + 0.5
    first, second = PowerNorm(6, eps=0, num_groups=3).double(), PowerNorm(6, eps=0, num_groups=3).double()
    torch.testing.assert_close(first(x * factors), second(x))


def test_nothing_is_centred():
    x = make_case((4, 6, 3, 5)).x.abs()
    assert (PowerNorm(6).double()(x) >= 0).all()


@pytest.mark.parametrize(("total", "steps"), [(10**6, 10_000), (100_000, 10_000), (2_000, 200), (30, 3), (5, 0)])
def test_the_warm_up_is_at_most_a_tenth_of_the_training(total, steps):
    x = make_case((8, 6, 3, 5)).x
    u = x / (x.square().mean(1, keepdim=True) + EPS).sqrt()
    warm = u / (u.square().mean((0, 2, 3), keepdim=True) + EPS).sqrt()
    for step in sorted({1, max(steps // 2, 1), max(steps, 1), steps + 1, total}):
        layer = PowerNorm(6).double()
        set_total_steps(layer, 20)  # each call starts from the published count
        set_total_steps(layer, total)
        layer.num_batches_tracked.fill_(step - 1)
        layer.running_var.fill_(4)
        assert torch.allclose(layer(x), warm) == (step <= steps), step
        weight = 0.1 + 0.9 / step if step < steps else 0.1
        expected = 4 + (u.square().mean((0, 2, 3)) - 4) * weight
        torch.testing.assert_close(layer.running_var, expected)


def test_training_goes_on_from_a_checkpoint_bit_by_bit():
    layer, other = PowerNorm(4, **SHORT).double(), PowerNorm(4, **SHORT).double()
    *earlier, case = drifting((6, 4, 3, 5), 6)
    for past in earlier:
        train_step(layer, past)
    other.load_state_dict(layer.state_dict())
    got, expected = train_step(other, case), train_step(layer, case)
    for name, want in vars(expected).items():
        torch.testing.assert_close(getattr(got, name), want, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)
    assert list(layer.state_dict())[-1] == "nu"


def test_a_checkpoint_of_batch_norm_loads_and_starts_the_warm_up():
    batch, layer = nn.BatchNorm2d(4), PowerNorm(4)
    for case in drifting((6, 4, 3, 5), 3):
        batch(case.x.float())
        run(function_of(layer.double()), case)
    layer.load_state_dict(batch.state_dict())
    assert (layer.num_batches_tracked, layer.nu.any()) == (0, False)
    assert batch.num_batches_tracked == 3
    assert torch.equal(layer.running_var, torch.ones(4).double()), "that of batch norm is no mean square of u"


def test_a_compiled_backward_pass_moves_nu_as_an_eager_one():
    assert_compiles(PowerNorm(4, num_groups=2, **{**SHORT, "warmup_steps": 2}), (6, 4, 3, 5), 5)


def test_two_forward_passes_before_their_backward_passes():
    layer = PowerNorm(4, **SHORT).double()
    case = make_case((6, 4, 3, 5))
    x = case.x.requires_grad_()
    layer(layer(x)).backward(case.upstream)
    assert x.grad.isfinite().all()
    assert layer.nu.all()


def test_an_overflow_does_not_stay_in_nu():
    layer = PowerNorm(4, **SHORT).double()
    *earlier, case = drifting((6, 4, 3, 5), 6)
    for past in earlier:
        train_step(layer, past)
    before = layer.nu.clone()
    upstream = case.upstream.clone()
    upstream[0, 1, 0, 0] = math.inf
    x = case.x.clone().requires_grad_()
    layer(x).backward(upstream)
    assert not x.grad.isfinite().all()  # a loss scaler sees it
    assert layer.nu[1] == before[1]
    assert (layer.nu != before).sum() == 3
    assert train_step(layer, case).dx.isfinite().all()


def test_a_jump_of_the_activations_makes_nu_overshoot():
    """nu (1 - m z^2) grows where the mean square of a batch is more than 2 / m times the running one: 20 times."""
    layer = PowerNorm(4, warmup_steps=0).double()
    x = torch.ones(2, 4, 3, dtype=torch.float64, requires_grad=True)
    grown = []
    for square in (18.0, 22.0):
        layer.running_var.fill_(1 / square)
        layer.nu.fill_(1)
        layer(x).backward(torch.zeros_like(x))
        grown.append((layer.nu.abs() > 1).all().item())
    assert grown == [False, True]


def test_the_gradient_cannot_be_differentiated_again():
    x = make_case((4, 6, 3)).x.requires_grad_()
    (slope,) = torch.autograd.grad(PowerNorm(6).double()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_resetting_forgets_nu():
    layer = PowerNorm(4)
    run(function_of(layer), make_case((6, 4, 3)))
    assert layer.nu.any()
    layer.reset_parameters()
    assert not layer.nu.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 0}, r"num_groups=0"),
        ({"warmup_steps": -1}, r"warmup_steps=-1; expected at least 0"),
        ({"warmup_steps": 1.5}, r"warmup_steps=1.5 is of type float"),
        ({"backward_momentum": 2}, r"backward_momentum=2; expected a number from 0 to 1"),
        ({"backward_momentum": None}, r"backward_momentum=None; expected a number from 0 to 1"),
        ({"momentum": -1}, r"momentum=-1; expected a number from 0 to 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        PowerNorm(4, **options)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(DivisibilityError):
        PowerNorm(6, num_groups=4)


def test_one_element_is_refused():
    with pytest.raises(SingleElementError, match=r"input \(1, 4, 1\) has 1 element .* the sign alone"):
        PowerNorm(4)(torch.randn(1, 4, 1))


def test_the_repr_names_groups_and_schedule():
    assert repr(PowerNorm(4)) == (
        "PowerNorm(4, eps=1e-05, momentum=0.1, affine=True, num_groups=1, backward_momentum=0.1, warmup_steps=10000)"
    )
