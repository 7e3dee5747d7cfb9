"""RMSNorm against its definition, torch's on (N, C), and layer norm."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import make_case, run
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import RMSNorm
from groupnorm.ops.reference import affine, average, normalize
from groupnorm.sets import layer_set


def layer_of(case, **options):
    """The layer as a function of its input and gain; the bias is none."""
    layer = RMSNorm(case.x.shape[1], **options).to(case.x.dtype)
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight}, (x,))


def definition(eps=1e-5):
    return lambda x, weight, bias: affine(x / (average(x.square(), layer_set()) + eps).sqrt(), weight, bias)


@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (4, 6), (4, 6, 4), (4, 6, 2, 3, 2)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_it_is_its_definition(shape, eps):
    case = make_case(shape, affine="weight")
    torch.testing.assert_close(vars(run(layer_of(case, eps=eps), case)), vars(run(definition(eps), case)))


def test_without_positions_it_is_torchs():
    case = make_case((4, 6), affine="weight")
    torchs = nn.RMSNorm(6, eps=1e-5).double()
    expected = run(lambda x, weight, bias: torch.func.functional_call(torchs, {"weight": weight}, (x,)), case)
    torch.testing.assert_close(vars(run(layer_of(case), case)), vars(expected))


def test_of_a_sample_without_a_mean_it_is_layer_norm_and_a_mean_is_kept():
    x = make_case((4, 6, 3, 5)).x
    norm = RMSNorm(6, affine=False)
    centred = x - average(x, layer_set())
    torch.testing.assert_close(norm(centred), normalize(x, layer_set()))
    assert norm(x + 10).mean() > 0.9


def test_eps_outside_the_root_as_in_the_authors_code_does_not_shrink_small_samples():
    """Theirs is ||x|| / sqrt(d) + 1e-8: an input of 1e-3 comes out with mean square 1; here with 1 / 11."""
    x = make_case((4, 6)).x
    x = 1e-3 * x / average(x.square(), layer_set()).sqrt()
    authors = x / (x.norm(dim=1, keepdim=True) / 6**0.5 + 1e-8)
    torch.testing.assert_close(authors.square().mean(1), torch.ones(4).double(), rtol=1e-4, atol=0)
    ours = RMSNorm(6).double()(x)
    torch.testing.assert_close(ours.square().mean(1), torch.full((4,), 1 / 11).double())
    torch.testing.assert_close(RMSNorm(6, eps=0.0).double()(x), authors, rtol=1e-4, atol=0)


def test_derivatives_of_first_and_second_order():
    case = make_case((2, 3, 4), affine="weight")
    norm, inputs = layer_of(case), [case.x.requires_grad_(), case.weight.requires_grad_()]
    assert gradcheck(lambda x, weight: norm(x, weight, None), inputs)
    assert gradgradcheck(lambda x, weight: norm(x, weight, None), inputs)


def test_it_has_a_gain_and_no_bias():
    assert set(RMSNorm(6).state_dict()) == {"weight"}
    assert not RMSNorm(6, affine=False).state_dict()
    assert repr(RMSNorm(6)) == "RMSNorm(6, eps=1e-05, affine=True)"


def test_one_element_is_refused_in_training_alone():
    x = torch.tensor([[3.0], [-2.0]])
    with pytest.raises(SingleElementError, match=r"input \(2, 1\) has 1 element per sample.*use more channels"):
        RMSNorm(1)(x)
    torch.testing.assert_close(RMSNorm(1).eval()(x), x.sign())


@pytest.mark.parametrize(("arguments", "message"), [((0,), "num_channels=0"), ((6, -1.0), "eps=-1.0")])
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        RMSNorm(*arguments)
