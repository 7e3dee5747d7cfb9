"""Batch/group norm against its definition, at its corners, and its moving moments beside the authors' formula."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import assert_agrees, make_case, run, with_gradients
from groupnorm import GroupNorm
from groupnorm.errors import ArgumentError, DivisibilityError, SingleElementError
from groupnorm.nn import GeneralBatchGroupNorm, GhostBatchNorm
from groupnorm.ops.reference import average, normalize
from groupnorm.sets import batch_set, general_set, ghost_set, group_set
from tolerances import rounding


def function_of(layer):
    """The layer as a function of its input and parameters."""
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))


class Authors:
    """Moving averages of E[x] and E[x^2] per channel, and what the authors' code makes of them at test time."""

    def __init__(self, channels, groups, example_weight, dtype=torch.float64):
        self.moving_x, self.moving_x2 = torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)
        self.groups, self.a = groups, example_weight

    def update(self, x, decay=0.99):
        axes = (0, *range(2, x.dim()))
        self.moving_x = decay * self.moving_x + (1 - decay) * x.mean(axes)
        self.moving_x2 = decay * self.moving_x2 + (1 - decay) * x.square().mean(axes)

    def __call__(self, x, eps=1e-5):
        def moment(moving, power):
            of_group = moving.view(self.groups, -1).mean(1).repeat_interleave(x.shape[1] // self.groups)
            of_example = average(x**power, group_set(self.groups))
            return (1 - self.a) * of_group.view(1, -1, *[1] * (x.dim() - 2)) + self.a * of_example

        mean, square = moment(self.moving_x, 1), moment(self.moving_x2, 2)
        return (x - mean) * (square - mean.square() + eps).rsqrt()


@pytest.mark.parametrize("shape", [(8, 6, 3, 5), (8, 6), (8, 6, 4), (8, 6, 2, 3, 2)])
@pytest.mark.parametrize(("examples", "groups"), [(2, 3), (4, 1), (8, 2)])
def test_it_is_the_definition_over_blocks_and_groups(shape, examples, groups):
    case = make_case(shape)
    layer = GeneralBatchGroupNorm(6, groups, examples).double()
    assert_agrees(run(function_of(layer), case), case, general_set(examples, groups))


@pytest.mark.parametrize(
    ("examples", "groups", "corner"), [(8, 6, batch_set()), (4, 6, ghost_set(4)), (1, 3, group_set(3))]
)
def test_its_corners_are_batch_ghost_and_group_norm(examples, groups, corner):
    case = make_case((8, 6, 3, 5))
    assert_agrees(run(function_of(GeneralBatchGroupNorm(6, groups, examples).double()), case), case, corner)


@pytest.mark.parametrize("examples", [4, 16])
def test_the_last_block_holds_what_is_left(examples):
    """As ghost batch norm's; the authors' code asks for a multiple of the block."""
    case = make_case((10, 6, 3, 5))
    inputs = (case.x, case.weight, case.bias)

    def blocks(x, weight, bias):
        return torch.cat([normalize(part, general_set(len(part), 3), weight, bias) for part in x.split(examples)])

    layer, ghost = GeneralBatchGroupNorm(6, 3, examples).double(), GhostBatchNorm(6, examples).double()
    expected = with_gradients(blocks, inputs, case.upstream)
    for got, want in zip(with_gradients(function_of(layer), inputs, case.upstream), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=rounding(torch.float64, case.x, want))
    torch.testing.assert_close(GeneralBatchGroupNorm(6, 6, examples).double()(case.x), ghost(case.x))


def test_derivatives_of_first_and_second_order():
    case = make_case((5, 4, 2))
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    for layer in (
        GeneralBatchGroupNorm(4, 2).double(),
        GeneralBatchGroupNorm(4, 2, example_weight=0.3).double().eval(),
    ):
        assert gradcheck(function_of(layer), inputs)
        assert gradgradcheck(function_of(layer), inputs)


@pytest.mark.parametrize("a", [0, 0.3, 1])
@pytest.mark.parametrize("shape", [(6, 6, 3, 5), (6, 6, 4), (6, 6)])
def test_evaluation_mixes_moving_moments_with_the_samples_own(a, shape):
    layer, authors = GeneralBatchGroupNorm(6, 3, example_weight=a).double(), Authors(6, 3, a)
    for _ in range(5):
        x = make_case(shape).x
        layer(x)
        authors.update(x)
    torch.testing.assert_close(layer.running_mean, authors.moving_x)
    torch.testing.assert_close(layer.running_var, authors.moving_x2 - authors.moving_x.square())
    torch.testing.assert_close(layer.eval()(x), authors(x))


def test_the_weight_of_the_sample_can_be_set_once_the_layer_is_trained():
    layer = GeneralBatchGroupNorm(6, 3).double()
    x = make_case((6, 6, 3, 5)).x
    layer(x)
    layer.eval()
    at_0 = layer(x)
    layer.example_weight = 1
    case = make_case((6, 6, 3, 5), affine="none")
    assert_agrees(layer(case.x), case, group_set(3))
    assert_agrees(GroupNorm(3, 6).double()(case.x), case, group_set(3))
    assert (layer(x) - at_0).abs().max() > 0.1
    assert "example_weight=1" in repr(layer)


def test_momentum_none_gives_the_moments_of_all_batches_together():
    layer = GeneralBatchGroupNorm(6, 3, momentum=None).double()
    batches = [make_case((4, 6, 3, 5)).x + i for i in range(3)]
    for x in batches:
        layer(x)
    variance, mean = torch.var_mean(torch.cat(batches), (0, 2, 3), correction=0)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)


def test_its_statistics_start_at_a_mean_of_0_and_a_mean_square_of_1():
    layer = GeneralBatchGroupNorm(6, 3)
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(6).state_dict())
    assert torch.equal(layer.running_mean, torch.zeros(6))
    assert torch.equal(layer.running_var, torch.ones(6))
    assert layer.momentum == 0.01


def test_the_authors_second_moment_cancels_and_the_running_variance_does_not():
    """With a mean of 5,000 deviations, float32 has no digits left for E[x^2] - E[x]^2."""
    layer, authors, exact = GeneralBatchGroupNorm(6, 3, momentum=1), Authors(6, 3, 0, torch.float32), Authors(6, 3, 0)
    x = 5000 + torch.randn(8, 6, 4, 4)
    layer(x)
    authors.update(x, decay=0)
    exact.update(x.double(), decay=0)
    expected = exact(x.double())
    torch.testing.assert_close(layer.eval()(x).double(), expected, rtol=0, atol=rounding(torch.float32, x, expected))
    assert not (authors(x) - expected).abs().max() < 1  # far off, or not a number


@pytest.mark.parametrize(
    ("shape", "groups", "message"),
    [((1, 6), 6, r"input \(1, 6\) has 1 element"), ((3, 6), 6, "1 element for each mean and variance")],
)
def test_a_block_of_one_element_per_group_is_refused_and_changes_nothing(shape, groups, message):
    layer = GeneralBatchGroupNorm(6, groups, 2)
    with pytest.raises(SingleElementError, match=message):
        layer(torch.randn(shape))
    torch.testing.assert_close(layer.state_dict(), GeneralBatchGroupNorm(6, groups).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_groups": 4}, DivisibilityError, "num_groups=4"),
        ({"num_groups": 3, "examples": 0}, ArgumentError, "examples=0; expected at least 1"),
        ({"num_groups": 3, "examples": 2.5}, ArgumentError, "examples=2.5"),
        ({"num_groups": 3, "example_weight": 1.5}, ArgumentError, "example_weight=1.5; expected a number from 0 to 1"),
        ({"num_groups": 3, "example_weight": None}, ArgumentError, "example_weight=None; expected a number"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        GeneralBatchGroupNorm(6, **options)
