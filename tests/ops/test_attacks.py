"""What once crashed, or was wrong without a word."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from backends import by_backend, by_compiled_backend
from groupnorm import GroupNorm
from groupnorm.errors import ArgumentError, BackendError, DeviceError, DtypeError, UnallocatedError
from groupnorm.functional import group_norm, group_norm_statistics
from groupnorm.ops import cpu, native

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
    with pytest.raises(DeviceError, match="on meta and the input on cpu"):
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


@by_compiled_backend
def test_a_named_backend_computes_statistics_with_a_gradient_and_a_mask(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for composed in ("group_statistics", "group_norm"):
        monkeypatch.setattr(native, composed, None)
    x, mask = X.double().requires_grad_(), torch.rand(2, 40, 40) < 0.5
    for given in ({}, {"mask": mask}):
        found = group_norm_statistics(x, 4, **given, backend=backend)
        (dx,) = torch.autograd.grad(found, x, [torch.randn(2, 4).double() for _ in found])
        assert dx.any()


UNALLOCATED = ["x", "weight", "bias", "residual", "mean", "out"]


@by_compiled_backend
@pytest.mark.parametrize("freed", UNALLOCATED)
def test_a_tensor_whose_memory_was_freed_is_not_a_tensor_that_was_not_given(freed: str, backend: str) -> None:
    tensors = {
        "x": X.clone(),
        "weight": torch.full((8,), 5.0),
        "bias": torch.full((8,), 7.0),
        "residual": X.clone(),
        "mean": torch.zeros(2, 4),
        "out": torch.empty_like(X),
    }
    tensors[freed].untyped_storage().resize_(0)
    given = {}
    if freed == "residual":
        given["residual"] = tensors["residual"]
    if freed == "mean":
        given["statistics"] = tensors["mean"], torch.ones(2, 4)
    if freed == "out":
        given["out"] = tensors["out"]
    with pytest.raises(UnallocatedError, match=r"not allocated yet or was freed; expected \d+ elements"):
        group_norm(tensors["x"], 4, tensors["weight"], tensors["bias"], **given, backend=backend)


@by_compiled_backend
@pytest.mark.parametrize("freed", [0, 1, 2])
def test_a_tensor_that_was_freed_before_the_backward_pass(freed: int, backend: str) -> None:
    leaves = [X.clone().requires_grad_(), torch.ones(8, requires_grad=True), torch.ones(8, requires_grad=True)]
    inputs = [leaf * 1 for leaf in leaves]
    y = group_norm(inputs[0], 4, *inputs[1:], activation="silu", backend=backend)
    inputs[freed].untyped_storage().resize_(0)
    with pytest.raises(UnallocatedError):
        y.backward(OTHER)


@by_compiled_backend
def test_a_tensor_with_the_negative_bit(backend: str) -> None:
    x, dy = torch._neg_view(X), torch._neg_view(OTHER)
    leaf = (-X).requires_grad_()
    y = group_norm(leaf, 4, activation="silu")
    (dx,) = torch.autograd.grad(group_norm(leaf, 4, activation="silu"), leaf, -OTHER)
    torch.testing.assert_close(group_norm(x, 4, activation="silu"), y.detach())
    torch.testing.assert_close(group_norm(x, 4, activation="silu", backend=backend), y.detach())
    torch.testing.assert_close(torch.autograd.grad(y, leaf, dy)[0], dx)


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 8, 256, 256)])
@by_compiled_backend
def test_a_mode_sees_the_functions_of_torch(shape: tuple[int, ...], backend: str) -> None:
    seen = []

    class Look(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = torch.randn(shape)
    with Look():
        group_norm(x, 4, activation="silu")
        with pytest.raises(BackendError, match="something looks into it"):
            group_norm(x, 4, backend=backend)
    assert {"group_norm", "silu"} <= set(seen)


@by_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 8, 64, 64)])
def test_a_float32_bias_without_a_weight_beside_a_half_precision(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.ones(8, requires_grad=True)
    group_norm(x, 4, None, bias, backend=backend).backward(dy)
    torch.testing.assert_close(bias.grad, dy.float().sum((0, 2, 3)), rtol=1e-2, atol=1e-2)


@by_backend
def test_a_mask_with_an_empty_batch(backend: str) -> None:
    x, mask = torch.randn(0, 8, 5, requires_grad=True), torch.ones(0, 5, dtype=torch.bool)
    given = "auto" if backend in ("cpu", "triton") else backend  # which has no kernel for no elements
    y = group_norm(x, 4, mask=mask, backend=given)
    y.backward(torch.empty_like(y))
    assert (y.shape, x.grad.shape) == ((0, 8, 5), (0, 8, 5))
    assert [t.shape for t in group_norm_statistics(x, 4, mask=mask)] == [(0, 4), (0, 4)]


@by_backend
def test_a_mask_keeps_channels_last(backend: str) -> None:
    if backend == "reference":
        pytest.skip("the definition computes on reshaped copies")
    x = X.to(memory_format=torch.channels_last)
    y = group_norm(x, 4, activation="silu", mask=torch.rand(2, 40, 40) < 0.5, backend=backend)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy, in Triton's interpreter
@by_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 40, 40), (2, 8, 3, 3)])
def test_a_variance_that_overflows_does_not_look_alive(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, backend: str
) -> None:
    if backend in ("reference", "native"):
        pytest.skip("the definition and ATen have the range of their dtype; float64 holds this")
    x = (torch.randn(shape) * 1e30).to(dtype).to(memory_format=layout)
    assert group_norm(x, 4, backend=backend).isnan().all()
    assert group_norm_statistics(x, 4, backend=backend)[1].isnan().all()


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_activations_of_infinity(activation: str, dtype: torch.dtype) -> None:
    bias = torch.tensor([torch.inf, 0.0], dtype=dtype)
    y = group_norm(torch.zeros(1, 2, 6, dtype=dtype), 2, None, bias, activation=activation, backend="cpu")
    assert (y[0, 0] == torch.inf).all()


@needs_cpu
@pytest.mark.parametrize("shape", [(64, 1 << 20), (8, 4096, 2, 2), (256, 4096), (16, 65536, 4, 4), (64, 8, 128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_temporaries_take_no_more_memory_than_the_input(
    layout: torch.memory_format, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """And where there is not so much, the call raises, and the process lives."""
    if len(shape) == 2 and layout == torch.channels_last:
        pytest.skip("it has no positions")
    code = f"""
import resource, torch
from groupnorm.errors import OutOfMemoryError
from groupnorm.functional import group_norm
torch.set_num_threads(2)
x = torch.zeros({shape}, dtype={dtype}).to(memory_format={layout}).requires_grad_()
small = torch.zeros(2, 8, requires_grad=True)
torch.autograd.grad(group_norm(small, 2), small, torch.ones(2, 8))  # loads what is loaded once
y = group_norm(x, 1, activation="relu", backend="cpu")
dy = torch.ones_like(y)
now = int(open("/proc/self/statm").read().split()[0]) * 4096
def within(bytes):
    resource.setrlimit(resource.RLIMIT_AS, (now + int(bytes), resource.RLIM_INFINITY))
    try:
        return torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
try:
    within(1 << 20)
except RuntimeError:  # of torch for the gradient, or of the kernels
    print("raised")
if x.nbytes > 1 << 24:
    try:
        within(x.nbytes + (1 << 20))
    except OutOfMemoryError as error:
        print("raised", "batch" in str(error))
within(2 * x.nbytes + (16 << 20))
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("alive\n"), (done.returncode, done.stdout, done.stderr[-800:])


@by_compiled_backend
def test_numbers_of_numpy(backend: str) -> None:
    y = group_norm(X, np.int64(4), eps=np.float32(1e-3), backend=backend)
    torch.testing.assert_close(y, group_norm(X, 4, eps=float(np.float32(1e-3)), backend=backend))
    norm = GroupNorm(np.int32(4), np.int64(8), eps=np.float64(1e-3), backend=backend)
    assert (type(norm.num_groups), type(norm.num_channels), type(norm.eps)) == (int, int, float)
    mean, _ = group_norm_statistics(X, np.int64(4), np.float32(1e-3), backend=backend)
    assert mean.shape == (2, 4)


@by_compiled_backend
def test_an_output_with_the_negative_bit(backend: str) -> None:
    out = torch._neg_view(torch.empty_like(X))
    assert group_norm(X, 4, activation="relu", out=out, backend=backend) is out
    torch.testing.assert_close(out, group_norm(X, 4, activation="relu", backend=backend))


NOT_DENSE = {
    "sparse": (lambda t: t.to_sparse(), r"has layout torch.sparse_coo; .* make it dense with \w+.to_dense\(\)"),
    "mkldnn": (lambda t: t.to_mkldnn(), r"has layout torch._mkldnn; .* make it dense with \w+.to_dense\(\)"),
    "nested": (lambda t: torch.nested.nested_tensor(list(t)), "is a nested tensor; .* pad it with"),
}


@by_backend
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("name", ["input", "weight", "bias", "residual", "mask", "out", "statistics"])
def test_a_tensor_that_is_not_dense_is_told(name: str, kind: str, backend: str) -> None:
    make, message = NOT_DENSE[kind]
    if (name, kind) == ("mask", "mkldnn"):
        pytest.skip("it has no booleans")
    x, vector = torch.randn(2, 8, 4, 4), torch.ones(8)
    if (kind, name) in (("nested", "weight"), ("nested", "bias")):
        vector = torch.ones(8, 1)  # a nested tensor is made of vectors
    given = {
        "input": lambda: {"input": make(x)},
        "residual": lambda: {"input": x, "residual": make(x)},
        "out": lambda: {"input": x, "out": make(x)},
        "mask": lambda: {"input": x, "mask": make(torch.ones(2, 4, 4, dtype=torch.bool))},
        "statistics": lambda: {"input": x, "statistics": (make(torch.zeros(2, 4)), torch.ones(2, 4))},
    }.get(name, lambda: {"input": x, name: make(vector)})()
    with pytest.raises(DtypeError, match=f"{name} {message}"):
        group_norm(given.pop("input"), 4, **given, backend=backend)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_the_remedy_for_a_quantised_input_works() -> None:
    x = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    with pytest.raises(DtypeError, match=r"use x.dequantize\(\)"):
        group_norm(x, 4)
    group_norm(x.dequantize(), 4)
