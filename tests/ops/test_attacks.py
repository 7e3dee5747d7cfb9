"""What once crashed, or was wrong without a word."""

import pytest
import torch

from backends import by_backend
from groupnorm.errors import ArgumentError, BackendError, DtypeError
from groupnorm.functional import group_norm, group_norm_statistics
from groupnorm.ops import cpu

needs_cpu = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
X = torch.randn(2, 8, 40, 40)
OTHER = torch.randn(2, 8, 40, 40)


@by_backend
def test_the_default_device_is_another_one(backend: str) -> None:
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(group_norm(x, 4, activation="silu", backend=backend), x, OTHER)
    with torch.device("meta"):
        y = group_norm(x, 4, activation="silu", backend=backend)
        statistics = group_norm_statistics(X, 4, backend=backend)
        (dx,) = torch.autograd.grad(y, x, OTHER)
    torch.testing.assert_close(dx, expected)
    assert {t.device.type for t in statistics} == {"cpu"}


@by_backend
@pytest.mark.parametrize("name", ["weight", "bias", "statistics", "residual"])
def test_a_tensor_on_another_device_is_told(name: str, backend: str) -> None:
    group_norm(X, 4, torch.ones(8), torch.ones(8), backend=backend)  # a call of this kind has been checked
    elsewhere = torch.ones(8, device="meta")
    given = {
        "weight": elsewhere,
        "bias": elsewhere,
        "statistics": (torch.ones(2, 4, device="meta"), torch.ones(2, 4, device="meta")),
        "residual": X.to("meta"),
    }[name]
    with pytest.raises(DtypeError, match="on meta and the input on cpu"):
        group_norm(X, 4, **{name: given}, backend=backend)


@by_backend
def test_what_is_kept_for_a_backward_pass_is_not_overwritten_unnoticed(backend: str) -> None:
    out, a = torch.randn_like(X), torch.randn_like(X, requires_grad=True)
    z = a * out
    group_norm(X, 4, activation="silu", out=out, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward(OTHER)


def test_a_tensor_of_inference_mode_stays_as_it_is_outside() -> None:
    with torch.inference_mode():
        out = torch.empty_like(X)
        group_norm(X, 4, activation="silu", out=out)
    with pytest.raises(ArgumentError, match="out= was made in inference mode"):
        group_norm(X, 4, activation="silu", out=out)


@by_backend
@pytest.mark.parametrize("offset", [-640, 640])
@pytest.mark.parametrize("residual", [False, True])
def test_an_output_that_overlaps_the_input_in_part(offset: int, residual: bool, backend: str) -> None:
    buffer, n = torch.empty(X.numel() + 640), X.numel()
    begin = max(0, -offset)
    x = buffer[begin : begin + n].view_as(X).copy_(X)
    out = buffer[begin + offset : begin + offset + n].view_as(X)
    given = {"residual": x} if residual else {}
    first = OTHER if residual else x
    expected = group_norm(X + OTHER if residual else X, 4, activation="relu", backend="reference")
    torch.testing.assert_close(group_norm(first, 4, activation="relu", out=out, backend=backend, **given), expected)


@by_backend
def test_a_batch_of_gradients(backend: str) -> None:
    x = X.double().requires_grad_()
    dy = torch.randn(3, *X.shape, dtype=torch.float64)
    y = group_norm(x, 4, activation="silu", backend=backend)
    (batched,) = torch.autograd.grad(y, x, dy, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in dy]
    torch.testing.assert_close(batched, torch.stack(each))
    (none,) = torch.autograd.grad(y, x, torch._efficientzerotensor(X.shape, dtype=torch.float64))
    assert not none.any()


@needs_cpu
@pytest.mark.parametrize("value", [1.2345678e10, 1234567.89, 12345.678])
@pytest.mark.parametrize("shape", [(1, 16384, 2, 2), (1, 32768, 4, 4)])
def test_many_channels_that_are_one_constant(shape: tuple[int, ...], value: float) -> None:
    x = torch.full(shape, value).contiguous(memory_format=torch.channels_last)
    _, rstd = group_norm_statistics(x, 1, backend="cpu")
    torch.testing.assert_close(rstd, torch.full((1, 1), 1e-5).rsqrt())


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_activations_far_out(activation: str, dtype: torch.dtype) -> None:
    bias = torch.tensor([1e4, -1e4, 1e19, -1e19, 3e38, -3e38, 0.0, -50.0], dtype=dtype)
    x = torch.zeros(1, 8, 6, dtype=dtype)
    y = group_norm(x, 4, None, bias, activation=activation, backend="cpu")
    torch.testing.assert_close(y[0, :, 0], bias.clamp_min(0), rtol=0, atol=1e-18)


@by_backend
def test_the_gradient_of_a_scale_that_is_zero(backend: str) -> None:
    rstd = torch.zeros(2, 4, requires_grad=True)
    mean = torch.randn(2, 4)
    y = group_norm(X, 4, statistics=(mean, rstd), backend=backend)
    (found,) = torch.autograd.grad(y, rstd, OTHER)
    expected = (OTHER * (X - mean.repeat_interleave(2, 1)[:, :, None, None])).unflatten(1, (4, 2)).sum((2, 3, 4))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 8, 256, 256)])
def test_parameters_of_two_dtypes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).bfloat16()
    weight, bias = torch.full((8,), 2.0), torch.ones(8, dtype=torch.bfloat16)
    y = group_norm(x, 2, weight, bias)
    torch.testing.assert_close(y.float(), group_norm(x.float(), 2, weight, bias.float()), rtol=1e-2, atol=1e-2)


def test_no_tensor_at_all() -> None:
    with pytest.raises(DtypeError, match="NoneType"):
        group_norm(None, 4)  # type: ignore[arg-type]


def test_an_eps_that_is_no_float() -> None:
    with pytest.raises(ArgumentError, match="a finite number"):
        group_norm(X, 4, eps=10**400)


@needs_cpu
def test_statistics_of_a_named_backend_are_its_own() -> None:
    with pytest.raises(BackendError, match="composed of ATen's operations"):
        group_norm_statistics(X.clone().requires_grad_(), 4, backend="cpu")
    with pytest.raises(BackendError, match="composed of ATen's operations"):
        group_norm_statistics(X, 4, mask=torch.ones(2, 40, 40, dtype=torch.bool), backend="cpu")
