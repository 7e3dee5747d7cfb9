"""Batch group norm against its definition over the merged axis, at its corners, and at other resolutions."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import assert_agrees, make_case, run
from groupnorm.errors import ArgumentError, DivisibilityError, SingleElementError
from groupnorm.nn import BatchGroupNorm, GeneralBatchGroupNorm
from groupnorm.ops.reference import affine, statistics
from groupnorm.sets import ALL, SharedSet, batch_set, group_set, merged_set
from tolerances import rounding


def function_of(layer):
    """The layer as a function of its input and parameters."""
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        *[((4, 6, 3, 4), groups) for groups in (1, 2, 4, 8, 24, 72)],  # 4 and 8 cut channels, 24 and 72 within them
        *[((4, 6), groups) for groups in (1, 3, 6)],
        *[((4, 6, 5), groups) for groups in (1, 10)],
        *[((4, 6, 2, 3, 2), groups) for groups in (1, 4)],
    ],
)
def test_it_is_the_definition_over_parts_of_the_merged_axis(shape, groups):
    case = make_case(shape)
    assert_agrees(run(function_of(BatchGroupNorm(6, groups).double()), case), case, merged_set(groups))


@pytest.mark.parametrize(
    ("samples", "groups", "corner"),
    [(8, 6, batch_set()), (8, 1, SharedSet(ALL, ALL)), (1, 3, group_set(3))],
    ids=["batch norm", "all elements", "group norm of one sample"],
)
def test_its_corners(samples, groups, corner):
    case = make_case((samples, 6, 3, 5))
    assert_agrees(run(function_of(BatchGroupNorm(6, groups).double()), case), case, corner)


def test_with_whole_channels_in_a_part_it_is_general_batch_group_norm_over_the_batch():
    x = make_case((8, 6, 3, 5)).x
    general = GeneralBatchGroupNorm(6, 3, examples=8).double()
    torch.testing.assert_close(BatchGroupNorm(6, 3).double()(x), general(x))


def test_derivatives_of_first_and_second_order():
    case = make_case((3, 3, 2, 2))
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    layer = BatchGroupNorm(3, 4).double()
    assert gradcheck(function_of(layer), inputs)
    assert gradgradcheck(function_of(layer), inputs)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_with_a_part_for_each_channel_its_state_and_evaluation_are_batch_norms(momentum):
    layer, batch = BatchGroupNorm(6, 6, momentum=momentum).double(), nn.BatchNorm2d(6, momentum=momentum).double()
    for _ in range(4):
        x = make_case((8, 6, 3, 5)).x
        layer(x)
        batch(x)
    torch.testing.assert_close(layer.state_dict(), batch.state_dict())
    torch.testing.assert_close(layer.eval()(x), batch.eval()(x))


@pytest.mark.parametrize("groups", [4, 8, 3])
def test_running_statistics_are_those_of_the_parts_and_serve_evaluation(groups):
    layer = BatchGroupNorm(6, groups, momentum=0.2).double()
    nn.init.normal_(layer.weight)
    mean, variance = torch.zeros(groups, dtype=torch.float64), torch.ones(groups, dtype=torch.float64)
    for _ in range(4):
        x = make_case((5, 6, 3, 4)).x
        layer(x)
        parts = x.reshape(5, groups, -1).transpose(0, 1).flatten(1)
        mean = 0.8 * mean + 0.2 * parts.mean(1)
        variance = 0.8 * variance + 0.2 * parts.var(1)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)

    def of_each(part):
        return part.repeat_interleave(72 // groups).view(1, 6, 3, 4)

    expected = affine((x - of_each(mean)) / (of_each(variance) + layer.eps).sqrt(), layer.weight, layer.bias)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=0, atol=rounding(torch.float64, x, expected))


def test_a_trained_layer_takes_maps_of_another_size_with_the_same_parts():
    """The cuts stay where they are, as fractions of the merged axis: 4 parts of 6 channels are 1.5 channels each."""
    layer = BatchGroupNorm(6, 4, momentum=1).double()
    layer(make_case((8, 6, 4, 4)).x)
    small = make_case((2, 6, 2, 2)).x
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    y = layer.eval()(small).repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(layer(large), y)


def test_it_normalises_what_it_says():
    x = make_case((4, 6, 3, 4)).x
    mean, variance = statistics(BatchGroupNorm(6, 8, eps=0, affine=False).double()(x), merged_set(8))
    torch.testing.assert_close(mean, torch.zeros_like(x), rtol=0, atol=rounding(torch.float64, x, x))
    torch.testing.assert_close(variance, torch.ones_like(x), rtol=0, atol=rounding(torch.float64, x, x))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_size_that_does_not_divide_is_refused_with_the_parts_that_do(mode):
    layer = BatchGroupNorm(6, 4).train(mode == "train")
    message = (
        r"channels x positions of the input \(2, 6, 3, 1\)=18 cannot be divided by num_groups=4; "
        r"expected a divisor of 18: use num_groups from \[1, 2, 3, 6, 9, 18\]"
    )
    with pytest.raises(DivisibilityError, match=message):
        layer(torch.randn(2, 6, 3, 1))
    torch.testing.assert_close(layer.state_dict(), BatchGroupNorm(6, 4).state_dict(), rtol=0, atol=0)


def test_a_part_of_one_element_is_refused():
    with pytest.raises(SingleElementError, match=r"input \(1, 6, 2, 1\) has 1 element .* use a larger batch"):
        BatchGroupNorm(6, 12)(torch.randn(1, 6, 2, 1))


@pytest.mark.parametrize("groups", [0, -1, 2.5])
def test_groups_that_cannot_be_are_refused(groups):
    with pytest.raises(ArgumentError, match=f"num_groups={groups}"):
        BatchGroupNorm(6, groups)
