"""What users call, ``backend="auto"``, against float64: any size, layout, dtype, mean and way to call."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agreement import Case, assert_agrees, make_case, run
from groupnorm import GroupNorm
from groupnorm.functional import ACTIVATIONS, group_norm
from groupnorm.ops import cpu, reference
from groupnorm.ops.activation import activate
from groupnorm.sets import group_set
from tolerances import centred_bound

EXAMPLES = os.environ.get("GROUPNORM_EXAMPLES")
many = settings(max_examples=int(EXAMPLES or 150), derandomize=EXAMPLES is None)  # other ones each time, if asked for
"""Of each property here; the suite takes seconds, a long run as many as wanted."""

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALVES)
LAYOUTS = ("contiguous", "channels last", "sliced channels last", "sliced rows", "transposed")
SIZES = (1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 64)
"""Of axes: vectors, chunks and the few positions that make a line end there."""


def arranged(x: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced channels last":
        return arranged(torch.cat([x, x], 1), "channels last")[:, : x.shape[1]]
    if layout == "sliced rows":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, int, float]:
    """A case, its groups, and how many deviations its mean is from 0."""
    groups, members = draw(st.sampled_from([1, 2, 3, 8])), draw(st.sampled_from([1, 2, 5, 16, 40]))
    rank = draw(st.integers(0, 3))
    positions = [draw(st.sampled_from(SIZES if rank < 3 else SIZES[:7])) for _ in range(rank)]
    shape = (draw(st.sampled_from([1, 2, 3, 5])), groups * members, *positions)
    while torch.Size(shape).numel() > 400_000:
        shape = (*shape[:-1], max(1, shape[-1] // 4)) if shape[-1] > 1 else (1, *shape[1:])
    dtype = draw(st.sampled_from(DTYPES))
    deviations = draw(st.sampled_from([0.0, 1.0, 30.0] if dtype in HALVES else [0.0, 1.0, 1e2, 1e4, 1e6]))
    scale = draw(st.sampled_from([1e-2, 1.0, 50.0]))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    case = make_case(shape, dtype=dtype, affine=draw(st.sampled_from(["weight bias", "weight", "bias", "none"])))
    x = ((torch.randn(shape, dtype=torch.float64) + deviations) * scale).to(dtype)
    if draw(st.booleans()) and dtype in HALVES:  # beside float32 parameters
        case = Case(x, *(None if p is None else p.float() for p in (case.weight, case.bias)), case.upstream)
    layout, upstream = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))
    return Case(arranged(x, layout), case.weight, case.bias, arranged(case.upstream, upstream)), groups, deviations


activations = st.sampled_from([None, *ACTIVATIONS])


@given(cases(), activations)
@many
def test_output_and_gradients(drawn: tuple[Case, int, float], activation: str | None) -> None:
    case, groups, _ = drawn
    shared = group_set(groups)
    if shared.size(case.x.shape) == 1:
        return
    outcome = run(lambda x, w, b: group_norm(x, groups, w, b, activation=activation), case)
    if activation == "relu" and case.x.dtype != torch.float64:  # an element near 0 may fall on either side of the kink
        outcome = outcome.y
    assert_agrees(outcome, case, shared, activation=activation)


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
@given(cases(), activations, st.sampled_from(["plain", "residual", "out", "training"]))
@many
def test_outputs_do_not_depend_on_the_mean(drawn: tuple[Case, int, float], activation: str | None, way: str) -> None:
    """The kernels subtract the mean before they round: what float32 inputs hold of a group comes out, at any mean."""
    case, groups, _ = drawn
    x, weight, bias = case.x, case.weight, case.bias
    if x.dtype == torch.float64:  # in which nothing wider holds the mean
        return
    wide = (x.double(), *(None if p is None else p.double() for p in (weight, bias)))
    if way == "training":
        y = group_norm(x.detach().requires_grad_(), groups, weight, bias, activation=activation).detach()
    elif way == "residual":
        half = x / 2  # exact, and so is the sum
        y = group_norm(half, groups, weight, bias, activation=activation, residual=half)
    elif way == "out":
        y = group_norm(x, groups, weight, bias, activation=activation, out=torch.empty_like(x))
    else:
        y = group_norm(x, groups, weight, bias, activation=activation)
    shared = group_set(groups)
    expected = activate(reference.normalize(wide[0], shared, *wide[1:]), activation)
    ones = torch.ones(x.shape[1], dtype=torch.float64)
    bound = centred_bound(
        wide[0],
        ones if weight is None else wide[1],
        0 * ones if bias is None else wide[2],
        shared,
        dtype=x.dtype,
        activation=activation,
    )
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=bound)


@given(cases(), activations, st.sampled_from(["vmap", "native", "reference"]))
@many
def test_other_paths(drawn: tuple[Case, int, float], activation: str | None, way: str) -> None:
    case, groups, _ = drawn
    if group_set(groups).size(case.x.shape) == 1:
        return
    if way == "vmap":
        y = torch.vmap(lambda x: group_norm(x[None], groups, case.weight, case.bias, activation=activation)[0])(case.x)
    else:
        y = group_norm(case.x, groups, case.weight, case.bias, activation=activation, backend=way)
    assert_agrees(y, case, group_set(groups), activation=activation)


@pytest.mark.parametrize("parameters", ["half", "float32", "none"])
@pytest.mark.parametrize("deviations", [0.0, 10.0, 50.0])
@pytest.mark.parametrize("shape", [(4, 16, 8, 8), (2, 16, 40, 40)], ids=["composed", "kernel"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_half_precisions_in_a_compiled_graph(
    dtype: torch.dtype, shape: tuple[int, ...], deviations: float, parameters: str
) -> None:
    case = make_case(shape, dtype=dtype, affine="none" if parameters == "none" else "weight bias")
    x, weight, bias = (torch.randn(shape) + deviations).to(dtype), case.weight, case.bias
    if parameters == "float32":
        weight, bias = weight.float(), bias.float()
    case = Case(x, weight, bias, case.upstream)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, w, b: group_norm(x, 4, w, b), fullgraph=True)
    assert_agrees(run(compiled, case), case, group_set(4))


@pytest.mark.parametrize("way", ["eager", "inference", "vmap", "compile", "compiled training", "native"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced channels last"])
@pytest.mark.parametrize("shape", [(2, 48, 9, 7), (2, 8, 4, 4), (2, 48, 40, 40)], ids=str)
def test_a_mean_of_ten_thousand_deviations(shape: tuple[int, ...], layout: str, way: str) -> None:
    x = arranged(torch.rand(shape) * 0.3 + 1000, layout)
    norm, expected = GroupNorm(4, shape[1], activation="silu"), group_norm(x.double(), 4, activation="silu")
    if way == "native":
        norm.backend = "native"
    if way in ("compile", "compiled training"):
        torch.compiler.reset()
        y = torch.compile(norm, fullgraph=True)(x.requires_grad_(way == "compiled training"))
    elif way == "vmap":
        y = torch.vmap(lambda sample: norm(sample[None])[0])(x)
    else:
        with torch.inference_mode(way == "inference"):
            y = norm(x)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=5e-3)
