"""Filter response norm against its definition and timm's, and what becomes of maps of one element."""

import pytest
import timm
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import make_case
from groupnorm import norm_layer
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import FilterResponseNorm
from groupnorm.ops.reference import affine, average, per_channel
from groupnorm.sets import instance_set


def parameters_of(channels, learn_eps=False):
    """Parameters away from where they start; thresholds that cut a part of the numbers."""
    case = make_case((2, channels))
    parameters = {"weight": case.weight, "bias": case.bias, "tau": torch.randn(channels, dtype=torch.float64)}
    return parameters | ({"learned_eps": torch.tensor(-0.3, dtype=torch.float64)} if learn_eps else {})


def layer_of(channels, names, **options):
    """The layer as a function of its input and of its named parameters."""
    layer = FilterResponseNorm(channels, **options).double()
    return lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))


def definition(x, weight, bias, tau, learned_eps=None, eps=1e-6):
    eps = eps if learned_eps is None else eps + learned_eps.abs()
    y = affine(x / (average(x.square(), instance_set()) + eps).sqrt(), weight, bias)
    return torch.maximum(y, per_channel(tau, y))


def outcome(function, inputs, upstream):
    """Output and the gradient of every input."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, upstream))


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 6, 4), (4, 6, 2, 3, 2)])
@pytest.mark.parametrize("learn_eps", [False, True])
def test_it_is_its_definition(shape, learn_eps):
    case, parameters = make_case(shape), parameters_of(6, learn_eps)
    inputs = (case.x, *parameters.values())
    actual = outcome(layer_of(6, parameters, learn_eps=learn_eps), inputs, case.upstream)
    torch.testing.assert_close(actual, outcome(definition, inputs, case.upstream))
    assert all(gradient.any() for gradient in actual)


def test_it_loads_and_is_timms_but_for_eps():
    ours, timms = FilterResponseNorm(6), timm.layers.FilterResponseNormTlu2d(6, eps=1e-6)
    timms.load_state_dict(parameters_of(6))
    ours.load_state_dict(timms.state_dict())
    x = make_case((4, 6, 3, 5)).x.float()
    torch.testing.assert_close(ours(x), timms(x))
    assert timm.layers.FilterResponseNormTlu2d(6).eps == 1e-5


def test_the_threshold_is_a_relu_between_two_shifts_and_can_be_left_out():
    x = make_case((4, 6, 3, 5)).x
    norm, bare = FilterResponseNorm(6).double(), FilterResponseNorm(6, activation=False).double()
    nn.init.normal_(norm.tau)
    tau = per_channel(norm.tau, x)
    torch.testing.assert_close(norm(x), torch.relu(bare(x) - tau) + tau)
    assert set(bare.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(FilterResponseNorm(6).double()(x), bare(x).relu())


def test_the_sign_of_the_learned_part_of_eps_does_not_matter():
    x = make_case((4, 6, 3, 5)).x
    norm = FilterResponseNorm(6, learn_eps=True).double()
    assert norm.learned_eps.item() == pytest.approx(1e-4)
    assert norm.learned_eps.shape == (1,)  # FSDP refuses scalars
    nn.init.constant_(norm.learned_eps, 0.5)
    y = norm(x)
    nn.init.constant_(norm.learned_eps, -0.5)
    torch.testing.assert_close(norm(x), y, rtol=0, atol=0)


def test_half_precision_passes_between_parameters_of_float32():
    x = make_case((4, 6, 3, 5)).x.bfloat16()
    norm = FilterResponseNorm(6)
    nn.init.normal_(norm.tau)
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("learn_eps", [False, True])
def test_derivatives_of_first_and_second_order(learn_eps):
    parameters = parameters_of(3, learn_eps)
    inputs = [t.requires_grad_() for t in (make_case((2, 3, 4)).x, *parameters.values())]
    assert gradcheck(layer_of(3, parameters, learn_eps=learn_eps), inputs)
    assert gradgradcheck(layer_of(3, parameters, learn_eps=learn_eps), inputs)


class TestMapsOfOneElement:
    """What is left of a number is its sign, unless eps grows to the size of its square."""

    @pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1, 1)])
    def test_they_are_refused_in_training_with_the_remedy_of_the_source(self, shape):
        message = r"has 1 element per map, .* use FilterResponseNorm\(6, learn_eps=True\)"
        with pytest.raises(SingleElementError, match=message):
            FilterResponseNorm(6)(torch.randn(shape))

    def test_with_the_fixed_eps_they_are_signs_without_a_gradient(self):
        """The derivative of x / sqrt(x^2 + eps) is eps / (x^2 + eps)^1.5."""
        x = torch.tensor([[3.0, -0.5, 2.0]], dtype=torch.float64, requires_grad=True)
        y = FilterResponseNorm(3, activation=False).double().eval()(x)
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
        torch.testing.assert_close(slope, 1e-6 / (x.detach().square() + 1e-6) ** 1.5)
        torch.testing.assert_close(y, x.sign(), rtol=0, atol=1e-5)
        assert slope.max() < 1e-4

    @pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1, 1)])
    def test_with_a_learned_eps_they_are_the_definition_and_train(self, shape):
        case, parameters = make_case(shape), parameters_of(6, learn_eps=True)
        inputs = (case.x, *parameters.values())
        actual = outcome(layer_of(6, parameters, learn_eps=True), inputs, case.upstream)
        torch.testing.assert_close(actual, outcome(definition, inputs, case.upstream))
        assert all(gradient.any() for gradient in actual)

    def test_the_factory_learns_eps_because_it_cannot_know_the_maps(self):
        norm = norm_layer("frn")(6)
        assert norm.learn_eps
        assert norm.eps == 1e-6
        assert norm(torch.randn(4, 6, 1, 1)).isfinite().all()
        assert not FilterResponseNorm(6).learn_eps


def test_the_factory_keeps_the_activation_of_its_own_and_leaves_it_out_when_told():
    factory = norm_layer("frn", activation="silu")
    assert factory(6).tau is not None
    assert factory(6, apply_act=False).tau is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation='relu'; expected True or False"),
        ({"learn_eps": 1e-4}, "learn_eps=0.0001; expected True or False"),
        ({"eps": -1.0}, "eps=-1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        FilterResponseNorm(6, **options)


@pytest.mark.parametrize("options", [{}, {"assign": True}])
def test_a_learned_eps_without_an_axis_loads_and_one_with_it_loads_where_there_is_none(options):
    """As of checkpoints of before it had one."""
    norm, x = FilterResponseNorm(4, learn_eps=True), torch.randn(2, 4, 3, 3)
    nn.init.constant_(norm.learned_eps, 0.5)
    old = {name: value[0] if name == "learned_eps" else value for name, value in norm.state_dict().items()}
    other = FilterResponseNorm(4, learn_eps=True)
    other.load_state_dict(old, **options)
    assert other.learned_eps.shape == (1,)
    assert torch.equal(other(x), norm(x))
    other.learned_eps = nn.Parameter(torch.tensor(1e-4))
    assert torch.equal(other(x), FilterResponseNorm(4, learn_eps=True)(x))
    if not options:
        other.load_state_dict(norm.state_dict())
        assert torch.equal(other(x), norm(x))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (0, 4)])
def test_nothing_to_normalise_gives_gradients_of_zeros(shape):
    norm, x = FilterResponseNorm(4, learn_eps=True), torch.randn(shape, requires_grad=True)
    norm(x).backward(torch.randn(shape))
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in norm.parameters())
