"""Convolutions as matrix products against torch's, and of several networks against each alone."""

import pytest
import torch
import torch.nn.functional as F
from tests.tolerances import summing
from torch import nn

from groupnorm.lab.models import convolution
from groupnorm.lab.models.convolution import Conv2d, StackedConv2d

PRODUCTS = {
    "1x1": (12, 8, {"kernel_size": 1}),
    "1x1 strided": (12, 7, {"kernel_size": 1, "stride": (2, 3)}),
    "few channels": (3, 8, {"kernel_size": 3, "padding": 1}),
    "few channels, uneven": (2, 5, {"kernel_size": (3, 2), "stride": 2, "padding": (0, 1), "dilation": (2, 1)}),
    "1x1 map": (12, 1, {"kernel_size": 3, "padding": 1}),
    "1x1 map, dilated, strided": (12, 1, {"kernel_size": (3, 5), "padding": (2, 4), "dilation": 2, "stride": 2}),
}
LIBRARY = {
    "many channels": (12, 8, {"kernel_size": 3, "padding": 1}),
    "1x1 padded": (12, 8, {"kernel_size": 1, "padding": 1}),
    "1x1 map, grown": (12, 1, {"kernel_size": 3, "padding": 2}),
    "1x1 map, even kernel": (12, 1, {"kernel_size": 2, "padding": 1}),
    "groups": (12, 8, {"kernel_size": 1, "groups": 3}),
}


def drawn(channels, side, bias, options, samples=3):
    layer = Conv2d(channels, 6, bias=bias, dtype=torch.float64, **options)
    return layer, torch.randn(samples, channels, side, side, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", PRODUCTS | LIBRARY)
def test_value_and_gradients_are_those_of_torch(kind, bias, monkeypatch):
    layer, x = drawn(*(PRODUCTS | LIBRARY)[kind][:2], bias, (PRODUCTS | LIBRARY)[kind][2])
    parameters = list(layer.parameters())
    expected = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, *parameters], upstream)
    monkeypatch.setattr(F, "conv2d", forbidden if kind in PRODUCTS else F.conv2d)
    y = layer(x)
    # Each is a sum of products of two of (x, weight, upstream), of at most this many, in another order.
    size = max(t.detach().abs().max() for t in (x, layer.weight, upstream)) ** 2
    terms = max(layer.weight[0].numel(), 6 * layer.weight[0, 0].numel(), len(x) * y[0, 0].numel()) + 1
    bound = float(2 * terms * summing(terms, torch.float64) * size)
    for found, wanted in zip(
        (y, *torch.autograd.grad(y, [x, *parameters], upstream)), (expected, *gradients), strict=True
    ):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= bound


def forbidden(*_, **__):
    raise AssertionError("left to the library")


def test_many_positions_of_few_channels_are_left_to_the_library(monkeypatch):
    layer, x = drawn(3, 8, False, {"kernel_size": 3, "padding": 1}, samples=64)
    monkeypatch.setattr(F, "conv2d", forbidden)
    layer(x)
    with pytest.raises(AssertionError, match="left to the library"):
        layer(torch.cat([x, x[:1]]))


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_padding_of_another_kind_is_torchs_own(options):
    layer = Conv2d(2, 4, 3, **options)
    plain = nn.Conv2d(2, 4, 3, **options)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 5, 5)
    assert torch.equal(layer(x), plain(x))
    with pytest.raises(ValueError, match="expected zeros, a number of each side"):
        StackedConv2d([layer, layer])


def test_an_image_without_a_batch_is_taken_as_torch_does():
    layer = Conv2d(2, 4, 3)
    x = torch.randn(2, 5, 5)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("samples", [1, 2, 5, 32])
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", PRODUCTS | LIBRARY)
def test_each_of_several_networks_has_the_bits_it_has_alone(kind, bias, count, samples):
    channels, side, options = (PRODUCTS | LIBRARY)[kind]
    layers = [Conv2d(channels, 6, bias=bias, **options) for _ in range(count)]
    stacked = StackedConv2d(layers)
    x = torch.randn(samples, count * channels, side, side, requires_grad=True)
    y = stacked(x)
    upstream = torch.randn_like(y)
    together = torch.autograd.grad(y, [x, *stacked.parameters()], upstream)
    parts = (t.chunk(count, axis) for t, axis in zip((x, upstream, y, *together), (1, 1, 1, 1, 0, 0), strict=False))
    for layer, own, gradient, value, *gradients in zip(layers, *parts, strict=True):
        own = own.detach().contiguous().requires_grad_()
        alone = layer(own)
        assert torch.equal(value, alone)
        for a, b in zip(
            gradients, torch.autograd.grad(alone, [own, *layer.parameters()], gradient.contiguous()), strict=True
        ):
            assert torch.equal(a, b)


def test_a_product_asks_the_library_for_nothing(monkeypatch):
    monkeypatch.setattr(convolution, "_exact", forbidden)
    for channels, side, options in PRODUCTS.values():
        layers = [Conv2d(channels, 6, **options) for _ in range(2)]
        StackedConv2d(layers)(torch.randn(2, 2 * channels, side, side))
