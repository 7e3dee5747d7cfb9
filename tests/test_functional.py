"""The function: equal to the definition for every shape, layout, dtype and activation, and a citizen of torch."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from agreement import Case, Norm, assert_agrees, make_case, run
from backends import by_backend, by_compiled_backend
from groupnorm.functional import ACTIVATIONS, group_norm
from groupnorm.ops.activation import activate
from groupnorm.sets import group_set, instance_set, layer_set

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy, in Triton's interpreter

SHAPES = [(3, 12), (3, 12, 7), (2, 12, 5, 3), (2, 12, 3, 2, 4)]
SHAPES_AND_GROUPS = [(s, g) for s in SHAPES for g in (1, 2, 3, 4, 6, 12) if group_set(g).size(s) > 1]
HALVES = [torch.bfloat16, torch.float16]


def norm(groups: int, activation: str | None = None, eps: float = 1e-5, backend: str = "auto") -> Norm:
    return lambda x, weight, bias: group_norm(x, groups, weight, bias, eps, activation=activation, backend=backend)


def sliced(x: Tensor) -> Tensor:
    """The same numbers, every second element of a larger tensor along each axis but the first."""
    larger = x.new_full((x.shape[0], *(2 * n for n in x.shape[1:])), math.nan)
    view = larger[(slice(None), *[slice(None, None, 2)] * (x.dim() - 1))]
    return view.copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "axes reversed": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "sliced": sliced,
}
by_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@by_backend
@pytest.mark.parametrize(("shape", "groups"), SHAPES_AND_GROUPS, ids=str)
@pytest.mark.parametrize("affine", ["weight bias", "weight", "bias", "none"])
def test_output_and_gradients_are_the_definitions(
    shape: tuple[int, ...], groups: int, affine: str, backend: str
) -> None:
    case = make_case(shape, affine=affine)
    assert_agrees(run(norm(groups, backend=backend), case), case, group_set(groups))


@by_backend
@pytest.mark.parametrize("needs", ["x", "weight", "bias", "x weight", "weight bias"])
def test_a_gradient_alone_is_the_one_of_all(needs: str, backend: str) -> None:
    case = make_case((2, 12, 5, 3))
    every = run(norm(4, "silu", backend=backend), case)
    leaves = {n: getattr(case, n).detach().requires_grad_(n in needs.split()) for n in ("x", "weight", "bias")}
    norm(4, "silu", backend=backend)(**leaves).backward(case.upstream)
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in needs.split())
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, getattr(every, f"d{name}"), rtol=0, atol=1e-12)


@by_backend
@given(
    N=st.integers(1, 4),
    groups=st.integers(1, 9),
    per_group=st.integers(1, 9),
    positions=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    eps=st.sampled_from([1e-6, 1e-5, 1e-3, 1.0]),
)
def test_any_shape_is_normalised_as_defined(
    backend: str, N: int, groups: int, per_group: int, positions: list[int], eps: float
) -> None:
    case, shared = make_case((N, groups * per_group, *positions)), group_set(groups)
    if shared.size(case.x.shape) > 1:
        assert_agrees(run(norm(groups, eps=eps, backend=backend), case), case, shared, eps=eps)


@by_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_activation_follows_the_normalisation(activation: str, shape: tuple[int, ...], backend: str) -> None:
    case = make_case(shape)
    assert_agrees(run(norm(3, activation, backend=backend), case), case, group_set(3), activation=activation)


def test_gelu_is_the_exact_one() -> None:
    x = make_case((2, 6, 5)).x
    y = group_norm(x, 2)
    exact = y * 0.5 * (1 + torch.erf(y * math.sqrt(0.5)))
    torch.testing.assert_close(group_norm(x, 2, activation="gelu"), exact, rtol=1e-14, atol=1e-15)


@by_backend
@by_layout
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strides_do_not_change_the_result(
    shape: tuple[int, ...], layout: Callable[[Tensor], Tensor], backend: str
) -> None:
    plain = make_case(shape)
    case = Case(layout(plain.x), plain.weight, plain.bias, layout(plain.upstream))
    assert torch.equal(case.x, plain.x)
    assert_agrees(run(norm(3, backend=backend), case), case, group_set(3))


@by_backend
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("upstream", ["expanded", *LAYOUTS])
def test_a_gradient_of_any_strides_is_read_as_what_it_is(layout: str, upstream: str, backend: str) -> None:
    """ATen's backward kernel misreads one that is in another format than the input."""
    plain = make_case((2, 12, 5, 3))
    dy = plain.upstream[:1, :, :1].expand(2, 12, 5, 3) if upstream == "expanded" else LAYOUTS[upstream](plain.upstream)
    x = plain.x if layout == "contiguous" else LAYOUTS[layout](plain.x)
    case = Case(x, plain.weight, plain.bias, dy)
    assert_agrees(run(norm(4, "silu", backend=backend), case), case, group_set(4), activation="silu")


@pytest.mark.parametrize(
    ("rank", "memory_format"), [(4, torch.channels_last), (5, torch.channels_last_3d)], ids=["2d", "3d"]
)
@by_backend
def test_channels_last_stays_channels_last(rank: int, memory_format: torch.memory_format, backend: str) -> None:
    if backend == "reference":
        pytest.skip("the definition computes on reshaped copies")
    x = torch.randn(2, 12, *[4] * (rank - 2)).to(memory_format=memory_format).requires_grad_()
    y = group_norm(x, 3, activation="silu", backend=backend)
    y.backward(torch.randn_like(y))
    assert y.is_contiguous(memory_format=memory_format)
    assert x.grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("groups", [1, 3, 6])
@by_backend
def test_lower_precision_errs_by_its_rounding_alone(
    dtype: torch.dtype, shape: tuple[int, ...], groups: int, backend: str
) -> None:
    case = make_case(shape, dtype=dtype)
    assert_agrees(run(norm(groups, backend=backend), case), case, group_set(groups))


@by_backend
@by_layout
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_lower_precision_with_other_strides_errs_by_its_rounding_alone(
    dtype: torch.dtype, layout: Callable[[Tensor], Tensor], backend: str
) -> None:
    plain = make_case((2, 12, 9, 5), dtype=dtype)
    case = Case(layout(plain.x), plain.weight, plain.bias, layout(plain.upstream))
    assert_agrees(run(norm(4, backend=backend), case), case, group_set(4))


@by_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_an_activation_in_lower_precision_errs_by_its_rounding_alone(
    activation: str, dtype: torch.dtype, backend: str
) -> None:
    case = make_case((2, 12, 5, 3), dtype=dtype)
    y = norm(4, activation, backend=backend)(case.x, case.weight, case.bias)
    assert_agrees(y, case, group_set(4), activation=activation)


@by_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_inputs_take_float32_parameters(dtype: torch.dtype, backend: str) -> None:
    half, full = make_case((2, 12, 5, 3), dtype=dtype), make_case((2, 12, 5, 3), dtype=torch.float32)
    case = Case(half.x, full.weight, full.bias, half.upstream)
    assert_agrees(run(norm(4, backend=backend), case), case, group_set(4))


@by_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_statistics_do_not_overflow_where_the_squares_would(dtype: torch.dtype, backend: str) -> None:
    """Squares of 1000 do not fit float16; sums run in float32."""
    plain = make_case((2, 12, 5, 3))
    case = Case((plain.x * 1000).to(dtype), None, None, plain.upstream.to(dtype))
    assert_agrees(run(norm(4, backend=backend), case), case, group_set(4))


@by_compiled_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_large_mean_does_not_cancel(dtype: torch.dtype, layout: str, backend: str) -> None:
    """A variance as E[x^2] - mean^2 is wrong by 1e8 times the rounding here: that of ATen can be 0 in float32."""
    plain = make_case((2, 12, 9, 5))
    x = (plain.x + 1e4).to(dtype)
    x = x if layout == "contiguous" else LAYOUTS[layout](x)
    y = group_norm(x, 4, backend=backend).double()
    expected = group_norm(x.double(), 4, backend="reference")
    assert (y - expected).abs().max() < 1e-5


@by_backend
@pytest.mark.parametrize("value", [0.0, 1.0, 65504.0, -3e-5])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_constant_group_has_variance_zero(value: float, dtype: torch.dtype, backend: str) -> None:
    case = make_case((2, 12, 9, 5), dtype=dtype)
    x = torch.full_like(case.x, value).requires_grad_()
    y = group_norm(x, 4, case.weight, case.bias, activation="relu", backend=backend)
    y.backward(case.upstream)
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    if backend != "native":  # ATen's scale and shift round to something that is not quite the bias
        bias = case.bias.relu().view(1, 12, 1, 1).expand_as(y)
        torch.testing.assert_close(y, bias, rtol=1e-6, atol=1e-6)


@by_compiled_backend
def test_one_outlier_leaves_the_others_what_they_are(backend: str) -> None:
    x = make_case((2, 12, 30, 30), dtype=torch.float32).x
    x[0, 0, 0, 0] = 1e6
    y, expected = group_norm(x, 4, backend=backend).double(), group_norm(x.double(), 4, backend="reference")
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "cpu"])  # slow: each derivative is a call or two
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("affine", ["weight bias", "none"])
@pytest.mark.parametrize("groups", [1, 2])
def test_derivatives_of_first_and_second_order_are_numeric_ones(
    activation: str | None, affine: str, groups: int, backend: str
) -> None:
    case = make_case((2, 4, 3), affine=affine)
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias) if t is not None]
    apply = norm(groups, activation, backend=backend)
    assert gradcheck(lambda x, w=None, b=None: apply(x, w, b), inputs)
    assert gradgradcheck(lambda x, w=None, b=None: apply(x, w, b), inputs)


@by_backend
def test_one_group_is_layer_norm_and_a_group_per_channel_is_instance_norm(backend: str) -> None:
    case = make_case((3, 12, 5, 3))
    assert_agrees(run(norm(1, backend=backend), case), case, layer_set())
    assert_agrees(run(norm(12, backend=backend), case), case, instance_set())


@by_backend
@pytest.mark.parametrize("layout", [lambda x: x, *LAYOUTS.values()], ids=["contiguous", *LAYOUTS])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_samples_output_is_the_same_bit_for_bit_in_any_batch(
    layout: Callable[[Tensor], Tensor], activation: str | None, threads: int, backend: str
) -> None:
    if backend in ("native", "reference") and activation not in (None, "relu"):
        pytest.skip("torch's vectorised exp and erf round otherwise than the scalar tail of a tensor")
    torch.set_num_threads(threads)  # the seeded fixture puts it back
    case = make_case((8, 12, 9, 7), dtype=torch.float32)
    apply = norm(4, activation, backend=backend)
    whole = apply(layout(case.x), case.weight, case.bias)
    for part in (1, 2, 3):
        alone = apply(layout(case.x[:part]), case.weight, case.bias)
        assert torch.equal(alone, whole[:part])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@by_backend
def test_nan_and_inf_spoil_their_group_alone_and_as_in_torch(
    value: float, activation: str | None, dtype: torch.dtype, backend: str
) -> None:
    x = make_case((2, 6, 5), dtype=dtype).x
    x[1, 3, 2] = value
    y = group_norm(x, 3, activation=activation, backend=backend)
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y, activate(F.group_norm(x, 3), activation), rtol=near, atol=near, equal_nan=True)
    spoiled = torch.zeros_like(x, dtype=torch.bool)
    spoiled[1, 2:4] = True
    assert torch.equal(y.isnan(), spoiled)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("N", [1, 2, 8])
@by_backend
def test_a_single_element_per_group_gives_the_activation_of_the_bias(
    N: int, activation: str | None, backend: str
) -> None:
    case = make_case((N, 12, 1, 1))
    y = norm(12, activation, backend=backend)(case.x, case.weight, case.bias)
    assert_agrees(y, case, group_set(12), activation=activation)
    bias = case.bias.view(1, 12, 1, 1).expand_as(y)
    assert_agrees(activate(bias, activation), case, group_set(12), activation=activation)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_a_single_element_per_group_passes_at_batch_size_one_where_the_function_of_torch_refuses(
    activation: str | None,
) -> None:
    x = make_case((1, 12)).x
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        F.group_norm(x, 12)
    assert_agrees(
        group_norm(x, 12, activation=activation),
        Case(x, None, None, upstream=x),
        group_set(12),
        activation=activation,
    )


@pytest.mark.parametrize("shape", [(0, 12), (0, 12, 3, 3)], ids=str)
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(shape: tuple[int, ...]) -> None:
    case = make_case(shape)
    outcome = run(norm(4, "relu"), case)
    assert outcome.y.shape == outcome.dx.shape == shape
    assert not outcome.dweight.any()
    assert not outcome.dbias.any()


def test_a_meta_tensor_gets_its_shape_without_a_computation() -> None:
    y = group_norm(torch.empty(2, 12, 5, device="meta"), 4, activation="gelu")
    assert (y.shape, y.device.type) == ((2, 12, 5), "meta")


def test_vmap_normalises_each_input_on_its_own() -> None:
    case = make_case((2, 12, 5))
    xs = torch.stack([case.x, case.x.flip(0) * 2])
    mapped = torch.vmap(lambda x: norm(4, "silu")(x, case.weight, case.bias))(xs)
    for x, y in zip(xs, mapped, strict=True):
        assert_agrees(y, Case(x, case.weight, case.bias, case.upstream), group_set(4), activation="silu")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # raised inside torch.func.jvp
def test_forward_mode_agrees_with_reverse_mode() -> None:
    """<v, J u> = <J^T v, u> for random u and v."""
    case = make_case((2, 12, 5))
    tangent = torch.randn_like(case.x)

    def f(x: Tensor) -> Tensor:
        return norm(4, "silu")(x, case.weight, case.bias)

    _, forward = torch.func.jvp(f, (case.x,), (tangent,))
    (reverse,) = torch.func.vjp(f, case.x)[1](case.upstream)
    torch.testing.assert_close((case.upstream * forward).sum(), (reverse * tangent).sum(), rtol=1e-12, atol=1e-12)
