"""What the norms have in common, as far as their own tests do not see it."""

import pytest
import torch

from groupnorm.nn import BatchRenorm, GeneralBatchGroupNorm, MovingAverageBatchNorm, set_total_steps


@pytest.mark.parametrize("layer", [BatchRenorm(4), GeneralBatchGroupNorm(4, 2), MovingAverageBatchNorm(4)])
@pytest.mark.parametrize(("steps", "momentum"), [(50, 0.1), (200, 0.05), (100_000, None)])
def test_running_statistics_remember_at_most_a_tenth_of_the_training(layer, steps, momentum):
    published = layer.momentum
    set_total_steps(layer, steps)
    assert layer.newest() == pytest.approx(momentum or published)
    assert layer.momentum == published


def test_a_momentum_of_none_averages_whatever_the_length_of_the_training():
    layer = GeneralBatchGroupNorm(4, 2, momentum=None).double()
    set_total_steps(layer, 10)
    batches = torch.randn(5, 6, 4, 3, dtype=torch.float64)
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, batches.mean((0, 1, 3)))
