"""The Triton backend is the definition: along every route, in every layout and dtype, and where numbers are extreme."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agreement import Case, assert_agrees, make_case
from groupnorm.functional import ACTIVATIONS
from groupnorm.ops import reference
from groupnorm.ops.spec import CHANNELS_LAST, CONTIGUOUS, Spec
from groupnorm.ops.triton import backward, forward, launch, plan, statistics
from groupnorm.sets import group_set
from ops.triton_calls import DEVICE, ROUTES, forced, guarded, laid_out, run_kernels, small, spec_of
from tolerances import accumulation_eps, bounds

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter

HALVES = [torch.bfloat16, torch.float16]
SHAPE, ONE, GROUPS = (2, 6, 3, 7), (1, 6, 3, 7), 2
"""Neither channels nor positions are a power of two, nor a multiple of what is read at once."""

by_route = pytest.mark.parametrize(("route", "layout"), ROUTES, ids=lambda name: name.replace(" ", "-"))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is allocated and not filled is NaN; so is what lies around the partial sums."""
    margin, blank = 64, launch.blank

    def surrounded(spec: Spec, x: Tensor, *shape: int) -> Tensor:
        return blank(spec, x, math.prod(shape) + 2 * margin)[margin:-margin].view(shape)

    monkeypatch.setattr(launch, "blank", surrounded)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@by_route
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_output_and_gradients_are_the_definitions(route: str, layout: str, dtype: torch.dtype) -> None:
    case = laid_out(make_case(SHAPE, dtype=dtype), layout)
    with forced(route, **small(case.x.dtype)):
        assert_agrees(run_kernels(case, GROUPS, "silu"), case, group_set(GROUPS), activation="silu")


@by_route
@pytest.mark.parametrize("affine", ["weight", "bias", "none"])
def test_parameters_may_be_missing(route: str, layout: str, affine: str) -> None:
    case = laid_out(make_case((1, 6, 3, 3), affine=affine), layout)
    with forced(route, **small(case.x.dtype)):
        assert_agrees(run_kernels(case, GROUPS), case, group_set(GROUPS))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@by_route
def test_an_activation_follows(route: str, layout: str, activation: str) -> None:
    case = laid_out(make_case((1, 4, 3, 3)), layout)
    with forced(route, **small(case.x.dtype)):
        assert_agrees(run_kernels(case, 2, activation), case, group_set(2), activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_an_activation_in_lower_precision_errs_by_its_rounding_alone(activation: str, dtype: torch.dtype) -> None:
    case = make_case(SHAPE, dtype=dtype)
    assert_agrees(run_kernels(case, 3, activation).y, case, group_set(3), activation=activation)


@settings(max_examples=25)
@given(
    N=st.integers(1, 5),
    groups=st.integers(1, 7),
    per_group=st.integers(1, 7),
    positions=st.lists(st.integers(1, 6), max_size=3),
    eps=st.sampled_from([1e-6, 1e-5, 1e-3, 1.0]),
    route=st.sampled_from(ROUTES),
    tiles=st.sampled_from([1, 7, 40]),
)
def test_any_shape_is_normalised_as_defined(
    N: int, groups: int, per_group: int, positions: list[int], eps: float, route: tuple[str, str], tiles: int
) -> None:
    case, shared = laid_out(make_case((N, groups * per_group, *positions)), route[1]), group_set(groups)
    elements = plan.power(case.x.numel() // tiles)
    if shared.size(case.x.shape) > 1:
        with forced(route[0], **small(torch.float64, elements)):
            assert_agrees(run_kernels(case, groups, eps=eps), case, shared, eps=eps)


@pytest.mark.parametrize("shape", [(5, 12), (3, 12, 7), (2, 12, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_every_rank_takes_a_route_of_its_own(shape: tuple[int, ...], groups: int) -> None:
    case = make_case(shape)
    if group_set(groups).size(shape) > 1:
        assert_agrees(run_kernels(case, groups), case, group_set(groups))


@by_route
def test_half_inputs_take_wider_parameters(route: str, layout: str) -> None:
    half, wide = make_case(ONE, dtype=torch.bfloat16), make_case(ONE, dtype=torch.float32)
    case = laid_out(Case(half.x, wide.weight, wide.bias, half.upstream), layout)
    with forced(route, **small(case.x.dtype)):
        assert_agrees(run_kernels(case, GROUPS), case, group_set(GROUPS))


@by_route
def test_results_are_the_same_bit_for_bit_each_time(route: str, layout: str) -> None:
    case = laid_out(make_case(ONE, dtype=torch.float32), layout)
    with forced(route, **small(case.x.dtype)):
        once, again = run_kernels(case, GROUPS, "silu"), run_kernels(case, GROUPS, "silu")
    for name, value in vars(once).items():
        assert torch.equal(value, getattr(again, name)), name


@by_route
def test_a_large_mean_costs_neither_the_variance_nor_the_output_their_digits(route: str, layout: str) -> None:
    """The sum of squares would be 1e8 times its own error; and a mean in float32 alone is off by 5e-4 already."""
    plain = make_case((2, 4, 5, 7), dtype=torch.float32)
    case = laid_out(Case(plain.x + 1e4, plain.weight, plain.bias, plain.upstream), layout)
    x = case.x.to(DEVICE)
    with forced(route, **small(case.x.dtype)):
        y, _, rstd = forward(spec_of(x, 2), x, case.weight.to(DEVICE), case.bias.to(DEVICE), 1e-5)
        of_its_own = statistics(spec_of(x, 2), x, 1e-5)[1]
    exact = Case(*(t.double() for t in vars(case).values()))
    variance = exact.x.reshape(2, 2, -1).var(2, correction=0)
    for found in (rstd, of_its_own):
        torch.testing.assert_close(found.cpu().double() ** -2, variance + 1e-5, rtol=1e-6, atol=0)
    expected = reference.normalize(exact.x, group_set(2), exact.weight, exact.bias)
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=bound_without_mean(plain))


def bound_without_mean(case: Case) -> float:
    """The bound of the output as if the mean were what it is in ``case``."""
    x, weight, bias, upstream = (t.double() for t in vars(case).values())
    return bounds(x, weight, bias, upstream, group_set(2), dtype=case.x.dtype).y


@by_route
def test_an_outlier_is_normalised_as_any_number(route: str, layout: str) -> None:
    """Also where it is the first of its group, which all numbers are taken relative to."""
    plain = make_case(SHAPE, dtype=torch.float32)
    plain.x[0, 0, 0, 0] = plain.x[1, 4, 1, 2] = 1e6
    case = laid_out(plain, layout)
    with forced(route, **small(case.x.dtype)):
        assert_agrees(run_kernels(case, GROUPS), case, group_set(GROUPS))


@by_route
def test_numbers_near_the_end_of_float16_are_normalised(route: str, layout: str) -> None:
    plain = make_case(ONE)
    x = (plain.x / plain.x.abs().max() * 65000).half()
    case = laid_out(Case(x, None, None, plain.upstream.half()), layout)
    with forced(route, **small(case.x.dtype)):
        assert_agrees(run_kernels(case, GROUPS), case, group_set(GROUPS))


@by_route
def test_a_constant_group_becomes_the_bias(route: str, layout: str) -> None:
    case = laid_out(make_case(ONE, dtype=torch.float32), layout)
    x = torch.full_like(case.x, 1.1).to(DEVICE)
    with forced(route, **small(case.x.dtype)):
        y, mean, rstd = forward(spec_of(x, GROUPS), x, None, case.bias.to(DEVICE), 1e-5)
    assert torch.equal(y.cpu(), reference.per_channel(case.bias, case.x).expand_as(case.x))
    assert torch.equal(mean, torch.full_like(mean, 1.1))
    torch.testing.assert_close(rstd, torch.full_like(rstd, 1e-5**-0.5), rtol=2 * accumulation_eps(x.dtype), atol=0)


@by_route
def test_eps_has_the_digits_of_the_dtype(route: str, layout: str) -> None:
    """Of an input so small that eps is all of the denominator; 1e-5 rounded to float32 is off by 2.5e-8 of itself."""
    plain = make_case(ONE)
    case = laid_out(Case(plain.x * 1e-6, plain.weight, plain.bias, plain.upstream), layout)
    with forced(route, **small(case.x.dtype)):
        assert_agrees(run_kernels(case, GROUPS), case, group_set(GROUPS))


@by_route
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_spoil_their_group_alone_and_as_in_torch(route: str, layout: str, value: float) -> None:
    case = laid_out(make_case((2, 6, 3, 3), dtype=torch.float32), layout)
    case.x[1, 3, 2, 0] = value
    with forced(route, **small(case.x.dtype)):
        y = forward(spec_of(case.x, 3, "relu"), case.x.to(DEVICE), None, None, 1e-5)[0].cpu()
    spoiled = torch.zeros_like(case.x, dtype=torch.bool)
    spoiled[1, 2:4] = True
    assert torch.equal(y.isnan(), spoiled)
    assert torch.equal(F.group_norm(case.x, 3).isnan(), spoiled)


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("shape", [(3, 12), (1, 12, 1, 1)], ids=str)
def test_a_single_element_per_group_gives_the_bias(shape: tuple[int, ...], layout: str) -> None:
    case = laid_out(make_case(shape, dtype=torch.float32), layout)
    outcome = run_kernels(case, 12)
    assert torch.equal(outcome.y, reference.per_channel(case.bias, case.x).expand_as(case.x))
    assert_agrees(outcome, case, group_set(12))


@pytest.mark.parametrize("shape", [(0, 12), (0, 12, 3, 3)], ids=str)
def test_an_empty_batch_has_zero_gradients(shape: tuple[int, ...]) -> None:
    outcome = run_kernels(make_case(shape), 4)
    assert outcome.y.shape == outcome.dx.shape == shape
    assert not outcome.dweight.any()
    assert not outcome.dbias.any()


def some_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Some statistics ``[N, G]`` that are not those of x."""
    N = x.shape[0]
    return torch.randn(N, groups, dtype=x.dtype), torch.rand(N, groups, dtype=x.dtype) + 0.5


def per_channel_of(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.repeat_interleave(x.shape[1] // numbers.shape[1], 1).view(*x.shape[:2], *[1] * (x.dim() - 2))


@by_route
def test_given_statistics_are_applied_and_their_gradients_are_sums(route: str, layout: str) -> None:
    case = laid_out(make_case(SHAPE), layout)
    mean, rstd = (t.requires_grad_() for t in some_statistics(case.x, GROUPS))
    x, weight, bias = (t.clone().requires_grad_() for t in (case.x, case.weight, case.bias))
    xhat = (x - per_channel_of(mean, x)) * per_channel_of(rstd, x)
    expected = F.silu(reference.affine(xhat, weight, bias))
    gradients = torch.autograd.grad(expected, (x, weight, bias, mean, rstd), case.upstream)

    x, dy, w, b, m, r = (t.detach().to(DEVICE) for t in (case.x, case.upstream, weight, bias, mean, rstd))
    spec = spec_of(x, GROUPS, "silu")
    with forced(route, **small(case.x.dtype)):
        y, *returned = forward(spec, x, w, b, 1e-5, statistics=(m, r))
        dx, dweight, dbias, sums = backward(spec, dy, x, w, b, m, r, fixed=True)
    assert returned == [m, r]
    assert sums.shape == (2, 2, GROUPS)
    found = (y, dx, dweight, dbias, -r * sums[0], sums[1] / r)
    for value, want in zip(found, (expected, *gradients), strict=True):
        torch.testing.assert_close(value.cpu(), want.detach())


@by_route
@pytest.mark.parametrize("same", ["none", "total is out", "total is residual", "all are x"])
def test_a_residual_is_added_first_and_memory_may_be_shared(route: str, layout: str, same: str) -> None:
    case = laid_out(make_case(ONE, dtype=torch.float16), layout)
    with forced(route, **small(case.x.dtype)):
        check_residual(case, same, None)


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("same", ["none", "total is out", "total is residual", "all are x"])
def test_a_residual_is_added_before_given_statistics_are_applied(layout: str, same: str) -> None:
    case = laid_out(make_case(ONE, dtype=torch.float16), layout)
    check_residual(case, same, some_statistics(case.x, GROUPS))


def check_residual(case: Case, same: str, given: tuple[Tensor, Tensor] | None) -> None:
    """With a residual, and some of the tensors ``same``, output and total are as for the sum."""
    x, intact = guarded(case.x)
    residual, weight, bias = (t.to(DEVICE) for t in (case.upstream, case.weight, case.bias))
    total, out = torch.empty_like(x), x if same == "all are x" else torch.empty_like(x)
    total = {"total is out": out, "total is residual": residual, "all are x": x}.get(same, total)
    given = None if given is None else tuple(t.to(DEVICE) for t in given)
    spec, added = spec_of(x, GROUPS, "silu"), x + residual
    plain, *_ = forward(spec, added, weight, bias, 1e-5, statistics=given)
    y, *_ = forward(spec, x, weight, bias, 1e-5, residual=residual, total=total, statistics=given, out=out)
    assert y is out
    assert torch.equal(y, plain)
    assert intact()
    if total is not out:
        assert torch.equal(total, added)


@by_route
def test_what_is_not_needed_is_not_computed_and_the_rest_is_the_same(route: str, layout: str) -> None:
    case = laid_out(make_case((2, 6, 3, 3)), layout)
    x, dy, weight, bias = case.x.to(DEVICE), case.upstream.to(DEVICE), case.weight.to(DEVICE), case.bias.to(DEVICE)
    spec = spec_of(x, 2, "relu")
    with forced(route, **small(case.x.dtype)):
        _, mean, rstd = forward(spec, x, weight, bias, 1e-5)
        whole = backward(spec, dy, x, weight, bias, mean, rstd)
        for needs in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
            found = backward(spec, dy, x, weight, bias, mean, rstd, needs=needs)
            for value, want, needed in zip(found, whole, (*needs, False), strict=True):
                assert (value is not None) == needed
                if needed:
                    torch.testing.assert_close(value, want)
