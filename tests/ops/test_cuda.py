"""What only a GPU shows: the Triton kernels behind the public functions, compiled, in graphs, and on huge tensors."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import groupnorm
from agreement import Case, Outcome, assert_agrees, make_case, run
from groupnorm.functional import ACTIVATIONS, group_norm, group_norm_statistics
from groupnorm.ops import reference
from groupnorm.sets import group_set
from tolerances import centred_bound

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU, and torch sees none")

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])

# Along every route of groupnorm.ops.triton.plan: small groups, groups of one multiprocessor, and larger ones.
SHAPES = [((3, 12, 5, 7), 4), ((2, 64, 40, 40), 8), ((2, 320, 64, 64), 32), ((1, 32, 300, 301), 4)]
by_shape = pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)


def on_gpu(case: Case, *, channels_last: bool) -> Case:
    def moved(t: Tensor) -> Tensor:
        return t.cuda(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    return Case(moved(case.x), case.weight.cuda(), case.bias.cuda(), moved(case.upstream))


def back(outcome: Outcome) -> Outcome:
    return Outcome(*(t.cpu() for t in vars(outcome).values()))


def with_kernels(groups: int, activation: str | None = None, **options: object):
    return lambda x, w, b: group_norm(x, groups, w, b, activation=activation, backend="triton", **options)


@by_shape
@by_layout
@by_dtype
def test_output_and_gradients_are_the_definitions(shape, groups, channels_last, dtype) -> None:
    case = make_case(shape, dtype=dtype)
    outcome = back(run(with_kernels(groups, "silu"), on_gpu(case, channels_last=channels_last)))
    assert_agrees(outcome, case, group_set(groups), activation="silu")


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@by_layout
def test_every_activation_follows(activation, channels_last) -> None:
    case = make_case((2, 64, 17, 19))
    outcome = back(run(with_kernels(8, activation), on_gpu(case, channels_last=channels_last)))
    assert_agrees(outcome, case, group_set(8), activation=activation)


@by_shape
@by_layout
def test_a_large_mean_does_not_cancel(shape, groups, channels_last) -> None:
    plain = make_case(shape, dtype=torch.float32)
    far = Case(plain.x + 1e4, plain.weight, plain.bias, plain.upstream)
    case = on_gpu(far, channels_last=channels_last)
    y = with_kernels(groups)(case.x, case.weight, case.bias).cpu().double()
    exact = far.double()
    expected = reference.normalize(exact.x, group_set(groups), exact.weight, exact.bias)
    bound = centred_bound(exact.x, exact.weight, exact.bias, group_set(groups), dtype=torch.float32)
    torch.testing.assert_close(y, expected, rtol=0, atol=bound)


@by_layout
def test_statistics_are_the_definitions(channels_last) -> None:
    case = on_gpu(make_case((2, 64, 40, 40), dtype=torch.float32), channels_last=channels_last)
    mean, rstd = group_norm_statistics(case.x, 8, backend="triton")
    wide = case.x.double().unflatten(1, (8, -1)).flatten(2)
    torch.testing.assert_close(mean.double(), wide.mean(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(rstd.double(), (wide.var(2, correction=0) + 1e-5).rsqrt(), rtol=1e-5, atol=0)


@by_layout
@by_dtype
def test_a_residual_is_added_first(channels_last, dtype) -> None:
    case, r = make_case((2, 64, 20, 20), dtype=dtype), torch.randn(2, 64, 20, 20).to(dtype)
    summed = Case((case.x + r).detach(), case.weight, case.bias, case.upstream)
    given = on_gpu(case, channels_last=channels_last)
    residual = on_gpu(Case(r, case.weight, case.bias, r), channels_last=channels_last).x
    assert_agrees(back(run(with_kernels(8, residual=residual), given)), summed, group_set(8))


@by_shape
@by_layout
def test_the_same_call_gives_the_same_bits(shape, groups, channels_last) -> None:
    case = on_gpu(make_case(shape, dtype=torch.bfloat16), channels_last=channels_last)
    first = run(with_kernels(groups, "silu"), case)
    for _ in range(5):
        again = run(with_kernels(groups, "silu"), case)
        assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))


@by_shape
@by_layout
def test_a_sample_has_the_bits_in_a_batch_that_it_has_alone(shape, groups, channels_last) -> None:
    case = on_gpu(make_case((5, *shape[1:]), dtype=torch.bfloat16), channels_last=channels_last)
    whole = run(with_kernels(groups, "silu"), case)
    for i in range(5):
        alone = run(
            with_kernels(groups, "silu"), Case(case.x[i : i + 1], case.weight, case.bias, case.upstream[i : i + 1])
        )
        assert torch.equal(whole.y[i : i + 1], alone.y)
        assert torch.equal(whole.dx[i : i + 1], alone.dx)


@by_layout
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_under_torch_compile(channels_last, dtype) -> None:
    case = make_case((2, 64, 40, 40), dtype=dtype)
    compiled = torch.compile(with_kernels(8, "silu"), fullgraph=True)
    outcome = back(run(compiled, on_gpu(case, channels_last=channels_last)))
    assert_agrees(outcome, case, group_set(8), activation="silu")


@by_layout
def test_in_a_cuda_graph(channels_last) -> None:
    case = on_gpu(make_case((2, 320, 64, 64), dtype=torch.bfloat16), channels_last=channels_last)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (case.x, case.weight, case.bias)]
    norm = with_kernels(32, "silu")

    def step() -> tuple[Tensor, ...]:
        y = norm(*leaves)
        return y, *torch.autograd.grad(y, leaves, case.upstream)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))


def test_on_another_stream() -> None:
    case = on_gpu(make_case((2, 320, 64, 64), dtype=torch.float32), channels_last=False)
    expected = with_kernels(32)(case.x, case.weight, case.bias)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = with_kernels(32)(case.x, case.weight, case.bias)
    torch.cuda.synchronize()
    assert torch.equal(found, expected)


def test_nothing_but_the_input_is_kept_for_the_backward_pass() -> None:
    norm = groupnorm.GroupNorm(32, 320, activation="silu", backend="triton", device="cuda", dtype=torch.bfloat16)
    x = torch.randn(4, 320, 64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    norm(x).backward(torch.randn_like(x))  # what is compiled and cached comes first
    before = torch.cuda.memory_allocated()
    y = norm(x)
    kept = torch.cuda.memory_allocated() - before - y.nbytes
    assert kept < x.nbytes / 100


@by_layout
def test_more_elements_than_an_int_counts(channels_last) -> None:
    """2^31 and 3 x 10^8 more; the first and the last group are compared."""
    shape, groups = (1, 128, 16128, 1200), 16
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("it takes 24 GB of the GPU's memory")
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0.5, 1.5)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    y = group_norm(x, groups, activation="silu", backend="triton")
    for channels in (slice(0, 8), slice(120, 128)):
        part = x[:, channels].float()
        expected = F.silu((part - part.mean()) * (part.var(correction=0) + 1e-5).rsqrt())
        torch.testing.assert_close(y[:, channels].float(), expected, rtol=2**-7, atol=2**-7)
        del part, expected
        gc.collect()
        torch.cuda.empty_cache()


def test_auto_takes_what_the_package_has_measured() -> None:
    explained = groupnorm.explain(torch.randn(2, 8, 40, 40, device="cuda", dtype=torch.bfloat16), 4, activation="silu")
    assert explained.chosen in ("native", "triton")
    assert explained.spec.gpu is not None
    assert explained.chosen == "triton" or explained.reasons["triton"]
