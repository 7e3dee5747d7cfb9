"""A sample has the same bits alone, in any batch, at any place in it and with any number of threads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from groupnorm import GroupNorm
from groupnorm.functional import ACTIVATIONS, group_norm, group_norm_statistics
from groupnorm.ops import cpu, triton
from groupnorm.ops.spec import CHANNELS_LAST, CONTIGUOUS, Spec
from groupnorm.ops.triton import plan

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())

SHAPES = [(6,), (512,), (12, 7), (6, 9, 7), (32, 4, 4), (48, 17, 1), (24, 33, 41), (6, 3, 5, 6), (8, 100, 100)]
"""Of one sample; with batches of up to 64 their elements lie on both sides of every size that matters to ATen."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BATCH_SIZES = (1, 2, 3, 7, 16, 33, 64)
LARGE = 10_000  # elements of a sample that are too many for large batches in a test


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def every_second_channel(x: Tensor) -> Tensor:
    """A channels-last tensor of twice the channels, sliced."""
    return channels_last(torch.stack([x, -x], 2).flatten(1, 2))[:, ::2]


def first_rows(x: Tensor) -> Tensor:
    """A tensor with another row, sliced: a batch of one is contiguous along all but one axis."""
    return torch.cat([x, x[:, :, :1]], 2)[:, :, :-1] if x.dim() > 2 else x


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": channels_last,
    "every second channel": every_second_channel,
    "first rows": first_rows,
    "first rows, channels last": lambda x: first_rows(channels_last(x)),
}


def assert_invariant(function: Callable[..., list[Tensor]], *tensors: Tensor) -> None:
    """Assert that ``function`` of the first of ``tensors``' samples, of one in the middle, ... is that of all.

    Args:
        function: of tensors ``[N, ...]``; returns tensors ``[N, ...]``.
        tensors: 64 samples, or fewer large ones.
    """
    most = len(tensors[0])
    torch.set_num_threads(2)  # the seeded fixture puts it back
    whole = function(*tensors)
    for i, size in enumerate(n for n in BATCH_SIZES if n <= most):
        torch.set_num_threads((1, 2, 3)[i % 3])
        places = (0, (most - size) // 2, most - size)
        for start in {*places} if size == 1 else {places[i % 3]}:
            part = slice(start, start + size)
            for got, expected in zip(function(*(t[part] for t in tensors)), whole, strict=True):
                assert torch.equal(got.view(torch.uint8), expected[part].contiguous().view(torch.uint8)), (size, start)


def samples(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, upstream gradients, scale and shift."""
    most = 64 if torch.Size(shape).numel() < LARGE else 7
    x, dy = (torch.randn(most, *shape).to(dtype) for _ in range(2))
    return x, dy, torch.rand(shape[0]).to(dtype) + 0.5, torch.randn(shape[0]).to(dtype)


def dense(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().contiguous() for t in tensors]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_input_gradient(shape: tuple[int, ...], dtype: torch.dtype, activation: str, layout: str) -> None:
    x, dy, weight, bias = samples(shape, dtype)
    groups = 2 if shape[0] < 100 else 32

    def step(x: Tensor, dy: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        y = group_norm(leaf, groups, weight, bias, activation=activation)
        return dense(y, *torch.autograd.grad(y, leaf, dy), group_norm(x, groups, weight, bias, activation=activation))

    assert_invariant(step, LAYOUTS[layout](x), LAYOUTS[layout](dy))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("parameters", ["affine", "no bias", "none", "float32"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", [(32, 4, 4), (24, 33, 41), (512,)], ids=str)
def test_the_module(shape: tuple[int, ...], dtype: torch.dtype, parameters: str, training: bool) -> None:
    norm = GroupNorm(8, shape[0], affine=parameters != "none", bias=parameters != "no bias", activation="silu")
    norm = norm.train(training).to(torch.float32 if parameters == "float32" else dtype)
    x, dy, *_ = samples(shape, dtype)

    def step(x: Tensor, dy: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        y = norm(leaf)
        return dense(y, *torch.autograd.grad(y, leaf, dy))

    assert_invariant(step, x, dy)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 9, 7), (32, 4, 4), (24, 33, 41)], ids=str)
@pytest.mark.parametrize("fused", ["residual", "statistics", "mask", "everything"])
def test_what_is_fused(fused: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    x, dy, weight, bias = samples(shape, dtype)
    residual, mask = torch.randn_like(x), torch.rand(len(x), *shape[1:]) < 0.7

    def step(x: Tensor, dy: Tensor, residual: Tensor, mask: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, residual)]
        given = {"residual": leaves[1]} if fused in ("residual", "everything") else {}
        if fused in ("mask", "everything"):
            given["mask"] = mask
        if fused == "statistics":
            given["statistics"] = group_norm_statistics(leaves[0], 2)
        y = group_norm(leaves[0], 2, weight, bias, activation="gelu", **given)
        return dense(y, *[g for g in torch.autograd.grad(y, leaves, dy, allow_unused=True) if g is not None])

    arrange = LAYOUTS[layout]
    assert_invariant(step, arrange(x), arrange(dy), arrange(residual), mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_statistics(layout: str, dtype: torch.dtype, masked: bool) -> None:
    x, *_ = samples((24, 33, 41), dtype)
    mask = torch.rand(len(x), 33, 41) < 0.7
    dmean, drstd = torch.randn(len(x), 4), torch.randn(len(x), 4)

    def step(x: Tensor, mask: Tensor, *upstream: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        found = group_norm_statistics(leaf, 4, mask=mask if masked else None)
        gradients = torch.autograd.grad(found, leaf, [u.to(found[0].dtype) for u in upstream])
        return dense(*found, *gradients)

    assert_invariant(step, LAYOUTS[layout](x), mask, dmean, drstd)


@pytest.mark.skipif(not triton.INTERPRETED, reason="Triton's interpreter is off")
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize(("shape", "groups"), [((6, 3, 3), 2), ((16, 5), 4), ((24, 20, 20), 2)], ids=str)
def test_triton(shape: tuple[int, ...], groups: int, layout: str) -> None:
    def step(x: Tensor, dy: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        y = group_norm(leaf, groups, activation="silu", backend="triton")
        return dense(y, *torch.autograd.grad(y, leaf, dy))

    arrange = LAYOUTS[layout]
    assert_invariant(step, arrange(torch.randn(4, *shape)), arrange(torch.randn(4, *shape)))


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("size", [(6, 3, 3), (320, 64, 64), (256, 512, 512), (64, 33, 7), (2048, 7, 7)], ids=str)
def test_triton_cuts_a_sample_in_the_same_way_in_every_batch(size: tuple[int, ...], layout: str) -> None:
    def cuts(samples: int) -> list[tuple[object, ...]]:
        spec = Spec("cuda", torch.float32, (samples, *size), layout, 2, None, True)
        every = [plan.resident(spec), plan.looped(spec), plan.streamed(spec), plan.split(spec)]
        of_all = {"rows", "programs", "lines", "blocks", "spans"}
        return [
            tuple(
                value if name != "geometry" else tuple(v for n, v in value._asdict().items() if n not in of_all)
                for name, value in cut._asdict().items()
                if name not in of_all
            )
            for cut in every
            if cut is not None
        ]

    assert plan.route(Spec("cuda", torch.float32, (1, *size), layout, 2, None, True)) == plan.route(
        Spec("cuda", torch.float32, (64, *size), layout, 2, None, True)
    )
    assert cuts(1) == cuts(3) == cuts(64)


def test_the_assertion_can_fail() -> None:
    """Of an activation whose scalar tail rounds otherwise than its vectors, as that of ATen does."""

    def step(x: Tensor) -> list[Tensor]:
        y = x.clone()
        y.view(-1)[-1] = torch.nextafter(y.view(-1)[-1], torch.tensor(torch.inf))
        return [y]

    with pytest.raises(AssertionError):
        assert_invariant(step, torch.randn(64, 6, 9, 7))
