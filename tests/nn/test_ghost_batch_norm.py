"""Ghost batch norm against its definition, and against batch norm chunk by chunk."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from agreement import assert_agrees, make_case, run
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn import GhostBatchNorm
from groupnorm.sets import batch_set, ghost_set


def layer_of(case, **options):
    """The layer as a function of its input and parameters."""
    layer = GhostBatchNorm(case.x.shape[1], **options).to(case.x.dtype)
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))


@pytest.mark.parametrize("shape", [(8, 6, 3, 5), (8, 6), (8, 6, 4), (8, 6, 2, 3, 2)])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_it_is_the_definition_over_chunks(shape, size):
    case = make_case(shape)
    assert_agrees(run(layer_of(case, ghost_size=size), case), case, ghost_set(size))


def test_one_chunk_is_batch_norm():
    case = make_case((8, 6, 3, 5))
    assert_agrees(run(layer_of(case, ghost_size=8), case), case, batch_set())


def test_derivatives_of_first_and_second_order():
    case = make_case((4, 2, 3))
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    assert gradcheck(layer_of(case, ghost_size=2), inputs)
    assert gradgradcheck(layer_of(case, ghost_size=2), inputs)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_last_chunk_holds_what_is_left_and_running_statistics_follow_in_order(momentum):
    x = make_case((10, 6, 3, 5)).x
    ghost = GhostBatchNorm(6, ghost_size=4, momentum=momentum).double()
    batch = nn.BatchNorm2d(6, momentum=momentum).double()
    torch.testing.assert_close(ghost(x), torch.cat([batch(x[:4]), batch(x[4:8]), batch(x[8:])]))
    torch.testing.assert_close(ghost.state_dict(), batch.state_dict())
    torch.testing.assert_close(ghost.eval()(x), batch.eval()(x))


def test_a_chunk_of_one_element_is_refused_before_anything_moves():
    layer = GhostBatchNorm(6, ghost_size=4)
    with pytest.raises(SingleElementError, match=r"input \(1, 6, 1, 1\) has 1 element .* use a larger batch"):
        layer(torch.randn(5, 6, 1, 1))
    assert (layer.num_batches_tracked, layer.running_mean.any()) == (0, False)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(ArgumentError, match=f"ghost_size={size}"):
        GhostBatchNorm(6, ghost_size=size)
