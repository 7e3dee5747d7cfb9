"""What the literature proves about its norms, as tests on the layers."""

import math

import pytest
import torch
from torch import nn

from agreement import make_case, run
from groupnorm import GroupNorm, norm_layer
from groupnorm.nn import GeneralBatchGroupNorm, GhostBatchNorm, replacements
from groupnorm.ops.reference import statistics
from groupnorm.sets import batch_set
from tolerances import rounding, summing

SHAPE = (8, 12, 3, 5)


def outcome(layer: nn.Module, case):
    """Output and gradients of a layer whose parameters are those of the case."""
    layer = layer.double()
    return run(lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)), case)


def assert_equal(first: nn.Module, second: nn.Module, case) -> None:
    """Both layers are the same function, forward and backward, but for rounding."""
    a, b = outcome(first, case), outcome(second, case)
    for name, value in vars(a).items():
        atol = 4 * rounding(torch.float64, case.x, value)
        torch.testing.assert_close(getattr(b, name), value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_group_norm_with_one_group_is_layer_norm():
    case = make_case(SHAPE)
    per_element = nn.LayerNorm(SHAPE[1:], elementwise_affine=False).double()

    def layer_norm(x, weight, bias):
        return per_element(x) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    for name, value in vars(run(layer_norm, case)).items():
        actual = getattr(outcome(GroupNorm(1, 12), case), name)
        torch.testing.assert_close(actual, value, rtol=0, atol=4 * rounding(torch.float64, case.x, value))


def test_group_norm_with_a_group_for_each_channel_is_instance_norm():
    assert_equal(GroupNorm(12, 12), nn.InstanceNorm2d(12, affine=True), make_case(SHAPE))


@pytest.mark.parametrize("spec", ["gn", "gn:4", "ln", "in", "frn", "rms"])
@pytest.mark.parametrize("training", [True, False])
def test_a_sample_does_not_depend_on_its_batch_bit_for_bit(spec: str, training: bool):
    torch.manual_seed(0)
    layer, x = norm_layer(spec)(12).train(training), make_case(SHAPE, dtype=torch.float32).x
    whole = layer(x)
    for n in range(len(x)):
        assert torch.equal(layer(x[n : n + 1]), whole[n : n + 1])


def gradients(spec: str, parts: int) -> torch.Tensor:
    """All gradients of a small network for a batch of 8, accumulated over parts."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), norm_layer(spec)(12), nn.ReLU(), nn.Conv2d(12, 8, 3), norm_layer(spec)(8)
    ).double()
    x, upstream = torch.randn(8, 3, 9, 9).double(), torch.randn(8, 8, 5, 5).double()
    for part, gradient in zip(x.chunk(parts), upstream.chunk(parts), strict=True):
        model(part).backward(gradient)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("spec", ["gn:4", "ln", "in"])
def test_gradients_accumulated_over_2_times_4_are_those_of_8(spec: str):
    whole = gradients(spec, 1)
    difference = (gradients(spec, 2) - whole).abs().max() / whole.abs().max()
    assert difference < 100 * summing(8 * 49, torch.float64)


def test_for_batch_norm_they_are_not():
    whole = gradients("bn", 1)
    assert (gradients("bn", 2) - whole).abs().max() / whole.abs().max() > 1e-2


class TestGeneralBatchGroupNormReachesItsCorners:
    def test_batch_norm(self):
        assert_equal(GeneralBatchGroupNorm(12, 12, examples=8), nn.BatchNorm2d(12), make_case(SHAPE))

    def test_ghost_batch_norm(self):
        assert_equal(GeneralBatchGroupNorm(12, 12, examples=4), GhostBatchNorm(12, 4), make_case(SHAPE))

    def test_group_norm(self):
        assert_equal(GeneralBatchGroupNorm(12, 3, examples=1), GroupNorm(3, 12), make_case(SHAPE))


@pytest.mark.parametrize("m", [2, 4, 16, 64])
def test_the_unbiased_variance_is_larger_by_m_over_m_less_1(m: int):
    """1.41, 1.15, 1.03 and 1.008 in standard deviations: what code that uses it gets wrong for m elements."""
    x = make_case((m, 3)).x
    layer = nn.BatchNorm1d(3, affine=False, momentum=1.0).double()
    layer(x)  # normalises with the biased variance, and keeps the unbiased one for evaluation
    ratio = (layer.running_var / statistics(x, batch_set())[1][0]).sqrt()
    torch.testing.assert_close(ratio, torch.full((3,), math.sqrt(m / (m - 1)), dtype=torch.float64))
    assert batch_set().size(x.shape) == m


def test_every_replacement_builds_for_common_channels():
    for spec in replacements():
        for channels in (16, 24, 30, 64):
            norm_layer(spec)(channels)
