"""Continual norm against its definition, and what group norm before batch norm is for."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import make_case, run, with_gradients
from groupnorm.errors import ArgumentError, DivisibilityError, SingleElementError
from groupnorm.nn import BatchChannelNorm, ContinualNorm
from groupnorm.ops.reference import normalize
from groupnorm.sets import batch_set, group_set
from tolerances import rounding


def function_of(layer):
    """The layer as a function of its input and parameters."""
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))


def definition(groups, eps=1e-5):
    return lambda x, weight, bias: normalize(normalize(x, group_set(groups), eps=eps), batch_set(), weight, bias, eps)


@pytest.mark.parametrize("shape", [(8, 6, 3, 5), (8, 6), (8, 6, 4), (8, 6, 2, 3, 2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_batch_norm_of_group_norm(shape, groups):
    case = make_case(shape)
    inputs = (case.x, case.weight, case.bias)
    actual = with_gradients(function_of(ContinualNorm(6, groups).double()), inputs, case.upstream)
    expected = with_gradients(definition(groups), inputs, case.upstream)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=rounding(torch.float64, case.x, want))


def test_derivatives_of_first_and_second_order():
    case = make_case((4, 4, 3))
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    layer = ContinualNorm(4, 2).double()
    assert gradcheck(function_of(layer), inputs)
    assert gradgradcheck(function_of(layer), inputs)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_batch_norms_of_what_group_norm_puts_out(momentum):
    """The batches are counted too; the authors' code leaves ``num_batches_tracked`` at 0."""
    layer, batch = ContinualNorm(6, 3, momentum=momentum).double(), nn.BatchNorm2d(6, momentum=momentum).double()
    nn.init.normal_(layer.weight)
    batch.load_state_dict(layer.state_dict())
    for _ in range(4):
        x = make_case((8, 6, 3, 5)).x
        torch.testing.assert_close(layer(x), batch(normalize(x, group_set(3))))
    torch.testing.assert_close(layer.state_dict(), batch.state_dict())
    torch.testing.assert_close(layer.eval()(x), batch.eval()(normalize(x, group_set(3))))
    assert layer.num_batches_tracked == 4


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_order_matters_a_sample_that_is_scaled_and_shifted_is_the_same_sample(mode):
    """Group norm comes first and takes brightness and contrast away, which batch-channel norm lets into the batch."""
    x = make_case((8, 6, 3, 5)).x * torch.arange(1, 7).view(1, 6, 1, 1)
    changed = x.clone()
    changed[2] = x[2] / 4 + 3
    ours, other = (layer(6, 2, eps=0, momentum=1).double() for layer in (ContinualNorm, BatchChannelNorm))
    for layer in (ours, other):
        layer(x)
        layer.train(mode == "train")
    y = ours(x)
    torch.testing.assert_close(ours(changed), y, rtol=0, atol=rounding(torch.float64, changed, y))
    assert (other(changed) - other(x)).abs().max() > 0.5


def test_with_the_running_statistics_of_its_start_it_is_group_norm():
    case = make_case((8, 6, 3, 5))
    layer = ContinualNorm(6, 3, eps=0).double().eval()
    expected = run(lambda x, weight, bias: normalize(x, group_set(3), weight, bias, 0), case)
    actual = run(function_of(layer), case)
    for name, want in vars(expected).items():
        atol = rounding(torch.float64, case.x, want)
        torch.testing.assert_close(getattr(actual, name), want, rtol=0, atol=atol)


def test_its_parameters_and_state_are_batch_norms():
    assert isinstance(ContinualNorm(6, 3), nn.modules.batchnorm._BatchNorm)
    assert list(ContinualNorm(6, 3).state_dict()) == list(nn.BatchNorm2d(6).state_dict())
    assert not list(ContinualNorm(6, 3, affine=False).parameters())


@pytest.mark.parametrize(
    ("shape", "groups", "message"),
    [((4, 6), 6, r"num_groups=6 has 1 element per group"), ((1, 6), 2, r"input \(1, 6\) has 1 element for each")],
)
def test_one_element_per_statistic_is_refused_and_changes_nothing(shape, groups, message):
    layer = ContinualNorm(6, groups)
    with pytest.raises(SingleElementError, match=message):
        layer(torch.randn(shape))
    torch.testing.assert_close(layer.state_dict(), ContinualNorm(6, groups).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("groups", "error"), [(4, DivisibilityError), (0, ArgumentError), (2.0, ArgumentError)])
def test_groups_that_cannot_be_are_refused(groups, error):
    with pytest.raises(error, match=f"num_groups={groups}"):
        ContinualNorm(6, groups)
