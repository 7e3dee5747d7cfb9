"""EvoNorm-S0 against its definition and timm's."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from agreement import make_case
from groupnorm import norm_layer
from groupnorm.errors import ArgumentError, DivisibilityError, SingleElementError
from groupnorm.nn import EvoNormS0
from groupnorm.ops.reference import affine, per_channel, statistics
from groupnorm.sets import group_set


def parameters_of(channels):
    case = make_case((2, channels))
    return {"weight": case.weight, "bias": case.bias, "v": torch.randn(channels, dtype=torch.float64)}


def layer_of(channels, groups, **options):
    """The layer as a function of its input, scale, shift and slope of the gate."""
    layer = EvoNormS0(channels, groups, **options).double()
    return lambda x, weight, bias, v: torch.func.functional_call(layer, {"weight": weight, "bias": bias, "v": v}, (x,))


def definition(groups, eps=1e-5, bessel=False):
    """The published formula; ``bessel`` divides by m - 1, as some ports do."""

    def norm(x, weight, bias, v):
        shared = group_set(groups)
        m = shared.size(x.shape)
        variance = statistics(x, shared)[1] * (m / (m - 1) if bessel else 1)
        return affine(x / (1 + (-per_channel(v, x) * x).exp()) / (variance + eps).sqrt(), weight, bias)

    return norm


def outcome(function, inputs, upstream):
    """Output and the gradient of every input."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, upstream))


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 6), (4, 6, 4), (4, 6, 2, 3, 2)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_it_is_its_definition(shape, groups):
    case = make_case(shape)
    inputs = (case.x, *parameters_of(6).values())
    actual = outcome(layer_of(6, groups), inputs, case.upstream)
    torch.testing.assert_close(actual, outcome(definition(groups), inputs, case.upstream))


def test_it_loads_and_is_timms():
    ours, timms = EvoNormS0(6, 2), timm.layers.EvoNorm2dS0(6, groups=2)
    timms.load_state_dict(parameters_of(6))
    ours.load_state_dict(timms.state_dict())
    x = make_case((4, 6, 3, 5)).x.float()
    torch.testing.assert_close(ours(x), timms(x))


def test_ports_with_the_unbiased_variance_shrink_the_output():
    x = make_case((4, 6, 1, 1)).x
    parameters = (torch.ones(6).double(), torch.zeros(6).double(), torch.ones(6).double())
    ours, port = (f(x, *parameters) for f in (layer_of(6, 3, eps=0.0), definition(3, eps=0.0, bessel=True)))
    torch.testing.assert_close(ours, port * 2**0.5)


def test_it_starts_as_silu_over_the_deviation_of_the_group():
    x = make_case((4, 6, 3, 5)).x
    expected = F.silu(x) / (statistics(x, group_set(2))[1] + 1e-5).sqrt()
    torch.testing.assert_close(EvoNormS0(6, 2).double()(x), expected)


def test_the_mean_stays():
    x = make_case((4, 6, 3, 5)).x
    norm = EvoNormS0(6, 2).double()
    assert norm(x + 10).mean() > 5 * norm(x).mean()


def test_derivatives_of_first_and_second_order():
    inputs = [t.requires_grad_() for t in (make_case((2, 4, 3)).x, *parameters_of(4).values())]
    assert gradcheck(layer_of(4, 2), inputs)
    assert gradgradcheck(layer_of(4, 2), inputs)


@pytest.mark.parametrize("training", [True, False])
def test_without_its_activation_only_the_affine_map_is_left(training):
    case = make_case((4, 6, 3, 5))
    norm = EvoNormS0(6, 2, activation=False).double().train(training)
    norm.load_state_dict({"weight": case.weight, "bias": case.bias})
    torch.testing.assert_close(norm(case.x), affine(case.x, case.weight, case.bias))
    torch.testing.assert_close(norm(case.x[:, :, :1, :1]), affine(case.x[:, :, :1, :1], case.weight, case.bias))


def test_the_factory_finds_the_groups_as_the_authors_code_does():
    """Theirs counts down from 32 to the first number that divides the channels."""
    for channels in (1, 6, 24, 37, 48, 62, 64, 96, 320):
        groups = 32
        while channels % groups:
            groups -= 1
        assert norm_layer("evonorm-s0")(channels).num_groups == groups
    assert norm_layer("evonorm-s0:c4")(24).num_groups == 6
    assert EvoNormS0(64).num_groups == 32


def test_groups_of_one_element_are_refused_in_training():
    message = r"input \(4, 6, 1, 1\) with num_groups=6 has 1 element per group.*use fewer groups"
    with pytest.raises(SingleElementError, match=message):
        EvoNormS0(6, 6)(torch.randn(4, 6, 1, 1))
    assert EvoNormS0(6, 6).eval()(torch.randn(4, 6, 1, 1)).isfinite().all()


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(DivisibilityError, match="num_channels=6 cannot be divided by num_groups=32"):
        EvoNormS0(6)
    with pytest.raises(ArgumentError, match="activation='relu'; expected True or False"):
        EvoNormS0(6, 2, activation="relu")
