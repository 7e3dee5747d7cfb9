"""Moments pooled from maps against the definition."""

import pytest
import torch

from groupnorm.ops.moments import map_moments, per_map, pool, second_moment
from groupnorm.ops.reference import average, statistics
from groupnorm.sets import batch_set, general_set, ghost_set, group_set, instance_set, layer_set
from tolerances import summing

SETS = [batch_set(), layer_set(), instance_set(), group_set(3), ghost_set(4), general_set(2, 3)]


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 7), (8, 6, 3, 5), (8, 6, 2, 3, 2)])
@pytest.mark.parametrize("shared", SETS, ids=str)
def test_they_are_the_definition(shared, shape):
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    moments = pool(*map_moments(x), shared)
    for actual, expected in zip(moments, statistics(x, shared), strict=True):
        bound = 10 * summing(shared.size(shape), x.dtype) * x.square().max().item()
        torch.testing.assert_close(per_map(actual, x).expand_as(x), expected, rtol=0, atol=bound)


def test_a_large_mean_does_not_cancel_the_variance():
    """E[x^2] - mean^2 in float32 would lose all digits at a mean of 10,000."""
    x = (torch.randn(4, 6, 8, 8, dtype=torch.float64) + 1e4).float()
    shared = group_set(2)
    _, variance = pool(*map_moments(x), shared)
    exact = statistics(x.double(), shared)[1][:, :, 0, 0]
    torch.testing.assert_close(variance.double(), exact, rtol=1e-4, atol=0)
    raw = average(x.square(), shared)[:, :, 0, 0] - average(x, shared)[:, :, 0, 0].square()
    assert (raw - exact).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3, 5)])
def test_the_second_moment_is_the_mean_of_squares(shape):
    x = torch.randn(shape, dtype=torch.float64)
    expected = average(x.square(), instance_set())
    torch.testing.assert_close(per_map(second_moment(x), x).expand_as(x), expected)
