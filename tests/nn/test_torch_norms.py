"""Rows of the catalog whose layers are torch's own: what they compute, and how a spec makes them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from agreement import make_case
from groupnorm import norm_layer
from groupnorm.ops.reference import average
from groupnorm.sets import EACH, SharedSet, Window

CARDS = Path(__file__).parents[2] / "docs" / "cards"


def outcome(function, x, upstream):
    """Output and the gradient of the input."""
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), *torch.autograd.grad(y, x, upstream)


class TestLocalResponseNorm:
    """Torch's divides alpha by the size of the window, so that it weighs the mean square; the source's does not."""

    @staticmethod
    def across(size, alpha, beta, k):
        """The definition over a window of channels: torch's and Caffe's ACROSS_CHANNELS."""
        return lambda x: x / (k + alpha * average(x.square(), SharedSet(EACH, Window(size), EACH))) ** beta

    @staticmethod
    def summed(before, after, alpha, beta, k):
        """The source's formula, channel by channel: alpha weighs the sum of the squares of the neighbours."""

        def norm(a):
            channels = []
            for i in range(a.shape[1]):
                near = a[:, max(0, i - before) : i + after + 1]
                channels.append(a[:, i] / (k + alpha * near.square().sum(1)) ** beta)
            return torch.stack(channels, 1)

        return norm

    @pytest.mark.parametrize("shape", [(2, 8, 3, 4), (2, 8, 5), (2, 8, 2, 3, 2)])
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
    def test_it_is_its_definition(self, shape, size):
        case = make_case(shape)
        actual = outcome(nn.LocalResponseNorm(size, alpha=0.7, beta=0.6, k=1.5), case.x, case.upstream)
        torch.testing.assert_close(actual, outcome(self.across(size, 0.7, 0.6, 1.5), case.x, case.upstream))

    def test_alexnets_alpha_is_five_times_as_large_here(self):
        x = 30 * make_case((2, 8, 3, 4)).x
        alexnet = self.summed(2, 2, alpha=1e-4, beta=0.75, k=2)(x)
        torch.testing.assert_close(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)(x), alexnet)
        copied = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)(x)
        assert (copied / alexnet).max() > 1.1

    def test_caffes_across_channels_is_torchs_with_other_defaults(self):
        """``(k + alpha / n * sum)^beta`` with n = 5, alpha = 1, beta = 0.75, k = 1."""
        x = make_case((2, 8, 3, 4)).x
        caffe = self.summed(2, 2, alpha=1 / 5, beta=0.75, k=1)(x)
        torch.testing.assert_close(nn.LocalResponseNorm(5, alpha=1.0, beta=0.75, k=1)(x), caffe)

    @pytest.mark.parametrize("radius", [1, 2, 5])
    def test_tensorflows_takes_a_radius_and_does_not_divide_alpha(self, radius):
        """``(bias + alpha * sum)^beta``, by default with radius 5, bias 1, alpha 1, beta 0.5."""
        x = make_case((2, 8, 3, 4)).x
        tensorflow = self.summed(radius, radius, alpha=1.0, beta=0.5, k=1)(x)
        size = 2 * radius + 1
        torch.testing.assert_close(nn.LocalResponseNorm(size, alpha=size * 1.0, beta=0.5, k=1)(x), tensorflow)

    def test_an_even_window_reaches_further_to_the_channels_before(self):
        x = make_case((2, 8, 3, 4)).x
        torch.testing.assert_close(nn.LocalResponseNorm(4)(x), self.summed(2, 1, alpha=1e-4 / 4, beta=0.75, k=1)(x))

    def test_it_keeps_the_scale_of_its_input(self):
        x = make_case((2, 8, 3, 4)).x
        torch.testing.assert_close(norm_layer("lrn")(8)(2 * x), 2 * norm_layer("lrn")(8)(x), rtol=1e-2, atol=0)

    def test_its_spec_carries_the_window_and_a_factorys_options_are_of_no_use(self):
        norm = norm_layer("lrn:7")(64, eps=1e-3, device="meta", dtype=torch.float64)
        assert repr(norm) == repr(nn.LocalResponseNorm(7))
        assert repr(norm_layer("lrn")(64)) == repr(nn.LocalResponseNorm(5))

    def test_what_torchs_refuses_is_on_its_card(self):
        norm = nn.LocalResponseNorm(5)
        with pytest.raises(ValueError, match="Expected 3D or higher"):
            norm(torch.randn(2, 8))
        with pytest.raises(NotImplementedError, match="not implemented for 'BFloat16'"):
            norm(torch.randn(2, 8, 3, 4, dtype=torch.bfloat16))
        card = (CARDS / "lrn.md").read_text()
        assert "half precision" in card
        assert "(N, C)" in card


class TestBatchNorm:
    def test_batch_norm_keeps_running_statistics(self):
        """``0.9 * running + 0.1 * batch`` from 0 and 1, where the batch's variance is the unbiased one."""
        norm, mean, variance = nn.BatchNorm2d(6).double(), torch.zeros(6).double(), torch.ones(6).double()
        for _ in range(3):
            x = make_case((4, 6, 3, 2)).x
            norm(x)
            mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
            variance = 0.9 * variance + 0.1 * x.var((0, 2, 3), correction=1)
        torch.testing.assert_close((norm.running_mean, norm.running_var), (mean, variance))
        x = make_case((4, 6, 3, 2)).x
        expected = (x - mean.view(-1, 1, 1)) / (variance + norm.eps).sqrt().view(-1, 1, 1)
        torch.testing.assert_close(norm.eval()(x), expected)


class TestInstanceNorm:
    def test_instance_norm_of_torch_has_no_affine_map_by_default(self):
        torchs, ours = nn.InstanceNorm2d(6).double(), norm_layer("in")(6, dtype=torch.float64)
        assert [name for name, _ in torchs.named_parameters()] == []
        assert [name for name, _ in ours.named_parameters()] == ["weight", "bias"]
        x = make_case((4, 6, 3, 2)).x
        torch.testing.assert_close(ours(x), torchs(x))

    def test_running_averages_make_another_function_of_it_at_test_time(self):
        norm = nn.InstanceNorm2d(6, track_running_stats=True).double()
        x = make_case((4, 6, 3, 2)).x
        assert (norm.eval()(x) - norm.train()(x)).abs().max() > 0.1
