"""EvoNorm-B0 against its definition and timm's, in training and at test time."""

import pytest
import timm
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import make_case
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import EvoNormB0
from groupnorm.ops.reference import affine, per_channel, statistics
from groupnorm.sets import batch_set, instance_set


def parameters_of(channels):
    """Slopes of both signs, so that either side of the maximum is the larger one somewhere."""
    case = make_case((2, channels))
    return {"weight": case.weight, "bias": case.bias, "v": torch.randn(channels, dtype=torch.float64)}


def layer_of(layer):
    """The layer as a function of its input, scale, shift and slope."""
    return lambda x, weight, bias, v: torch.func.functional_call(layer, {"weight": weight, "bias": bias, "v": v}, (x,))


def definition(running=None, eps=1e-5):
    def norm(x, weight, bias, v):
        batch = statistics(x, batch_set())[1] if running is None else per_channel(running, x)
        own = statistics(x, instance_set())[1]
        return affine(x / torch.max((batch + eps).sqrt(), per_channel(v, x) * x + (own + eps).sqrt()), weight, bias)

    return norm


def outcome(function, inputs, upstream):
    """Output and the gradient of every input."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, upstream))


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 6), (4, 6, 1, 1), (4, 6, 4), (4, 6, 2, 3, 2)])
def test_in_training_it_is_its_definition(shape):
    case = make_case(shape)
    inputs = (case.x, *parameters_of(6).values())
    actual = outcome(layer_of(EvoNormB0(6).double()), inputs, case.upstream)
    torch.testing.assert_close(actual, outcome(definition(), inputs, case.upstream))


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 6), (1, 6, 1, 1)])
def test_at_test_time_the_running_variance_replaces_the_batchs_alone(shape):
    case = make_case(shape)
    layer = EvoNormB0(6).double().eval()
    layer.running_var.copy_(torch.rand(6) + 0.5)
    layer.running_mean.fill_(torch.nan)  # is not read
    inputs = (case.x, *parameters_of(6).values())
    actual = outcome(layer_of(layer), inputs, case.upstream)
    torch.testing.assert_close(actual, outcome(definition(layer.running_var), inputs, case.upstream))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_batch_norm(momentum):
    layer, batch = EvoNormB0(6, momentum=momentum).double(), nn.BatchNorm2d(6, momentum=momentum).double()
    for n in (4, 7, 2):
        x = make_case((n, 6, 3, 5)).x
        layer(x), batch(x)
    del layer.v
    torch.testing.assert_close(layer.state_dict(), batch.state_dict())


def test_it_is_timms_but_for_eps():
    ours, timms = EvoNormB0(6), timm.layers.EvoNorm2dB0(6, eps=1e-5)
    for layer in (ours, timms):
        layer.load_state_dict(layer.state_dict() | parameters_of(6))
    timms.load_state_dict({key: ours.state_dict()[key] for key in timms.state_dict()})
    for n in (4, 7, 2):
        x = make_case((n, 6, 3, 5)).x.float()
        torch.testing.assert_close(ours(x), timms(x))
    torch.testing.assert_close(ours.running_var, timms.running_var)
    torch.testing.assert_close(ours.eval()(x), timms.eval()(x))
    assert timm.layers.EvoNorm2dB0(6).eps == 1e-3


def test_the_authors_code_keeps_the_biased_variance():
    """Theirs averages the variance that normalises; ours and timm's m / (m - 1) times as much, as batch norm's."""
    layer = EvoNormB0(6, momentum=1.0).double()
    x = make_case((2, 6, 2, 1)).x
    layer(x)
    authors = statistics(x, batch_set())[1][0, :, 0, 0]
    torch.testing.assert_close(layer.running_var, authors * 4 / 3)


def test_on_maps_of_one_element_the_variance_of_the_map_is_0_and_the_maximum_decides():
    x = torch.tensor([[3.0], [-1.0]], dtype=torch.float64).view(2, 1, 1, 1)  # batch variance 4
    y = EvoNormB0(1, eps=1e-8).double()(x)
    torch.testing.assert_close(y.flatten(), torch.tensor([3 / (3 + 1e-4), -1 / (4 + 1e-8) ** 0.5]).double())


@pytest.mark.parametrize("training", [True, False])
def test_derivatives_of_first_and_second_order(training):
    inputs = [t.requires_grad_() for t in (make_case((3, 2, 4)).x, *parameters_of(2).values())]
    layer = EvoNormB0(2, momentum=0.0).double().train(training)
    assert gradcheck(layer_of(layer), inputs)
    assert gradgradcheck(layer_of(layer), inputs)


@pytest.mark.parametrize("training", [True, False])
def test_without_its_activation_only_the_affine_map_is_left(training):
    case = make_case((1, 6, 1, 1))
    norm = EvoNormB0(6, activation=False).double().train(training)
    norm.load_state_dict(norm.state_dict() | {"weight": case.weight, "bias": case.bias})
    torch.testing.assert_close(norm(case.x), affine(case.x, case.weight, case.bias))
    assert "v" not in norm.state_dict()
    assert norm.num_batches_tracked == 0


def test_a_reset_starts_everything_again():
    layer = EvoNormB0(6)
    start = {key: value.clone() for key, value in layer.state_dict().items()}
    layer(torch.randn(4, 6, 3, 5))
    nn.init.normal_(layer.v)
    layer.reset_parameters()
    torch.testing.assert_close(dict(layer.state_dict()), start)
    assert (layer.v == 1).all()


def test_one_element_per_channel_is_refused_in_training():
    with pytest.raises(SingleElementError, match=r"input \(1, 6, 1, 1\) has 1 element per channel.*a larger batch"):
        EvoNormB0(6)(torch.randn(1, 6, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"activation": "relu"}, "activation='relu'"), ({"momentum": 2}, "momentum=2"), ({"eps": -1.0}, "eps=-1.0")],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        EvoNormB0(6, **options)
