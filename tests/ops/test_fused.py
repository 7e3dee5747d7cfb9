"""What is done in the same pass: a residual, statistics from elsewhere, padding, an output that is given."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from agreement import Case, assert_agrees, make_case, run, with_gradients
from backends import by_backend
from groupnorm import GroupNorm
from groupnorm.functional import ACTIVATIONS, group_norm, group_norm_statistics
from groupnorm.sets import group_set

SHAPES = [(3, 12), (3, 12, 7), (2, 12, 9, 5), (2, 12, 3, 2, 7)]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}
by_layout = pytest.mark.parametrize("layout", LAYOUTS)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)


class TestResidual:
    @by_backend
    @by_shape
    @by_layout
    @by_dtype
    def test_it_is_added_before(self, shape: tuple[int, ...], layout: str, dtype: torch.dtype, backend: str) -> None:
        case, r = make_case(shape, dtype=dtype), torch.randn(shape).to(dtype)
        x, r, dy = (LAYOUTS[layout](t) for t in (case.x, r, case.upstream))
        summed = Case((x + r).detach(), case.weight, case.bias, dy)  # rounded as an addition of its own is
        given = Case(x, case.weight, case.bias, dy)
        outcome = run(lambda x, w, b: group_norm(x, 3, w, b, residual=r, backend=backend), given)
        assert_agrees(outcome, summed, group_set(3))

    @by_backend
    def test_its_gradient_is_that_of_the_input(self, backend: str) -> None:
        case, r = make_case((2, 12, 5, 3)), torch.randn(2, 12, 5, 3, dtype=torch.float64)
        _, dx, dr = with_gradients(
            lambda x, r: group_norm(x, 3, activation="silu", residual=r, backend=backend), (case.x, r), case.upstream
        )
        assert torch.equal(dx, dr)
        assert dx.any()

    @by_backend
    def test_derivatives_are_numeric_ones(self, backend: str) -> None:
        inputs = [torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        assert gradcheck(lambda x, r: group_norm(x, 2, residual=r, backend=backend), inputs)
        assert gradgradcheck(lambda x, r: group_norm(x, 2, activation="gelu", residual=r, backend=backend), inputs)

    @by_backend
    def test_a_residual_in_another_layout(self, backend: str) -> None:
        case = make_case((2, 12, 5, 3))
        r = LAYOUTS["channels last"](torch.randn(2, 12, 5, 3, dtype=torch.float64))
        expected = group_norm(case.x + r, 3, backend="reference")
        torch.testing.assert_close(group_norm(case.x, 3, residual=r, backend=backend), expected)


class TestStatistics:
    @by_backend
    @by_shape
    @by_layout
    @by_dtype
    def test_they_are_the_definitions(
        self, shape: tuple[int, ...], layout: str, dtype: torch.dtype, backend: str
    ) -> None:
        x = LAYOUTS[layout](make_case(shape, dtype=dtype).x)
        mean, rstd = group_norm_statistics(x, 3, eps=1e-3, backend=backend)
        groups = x.double().reshape(shape[0], 3, -1)
        assert mean.dtype == rstd.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(mean.double(), groups.mean(2), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rstd.double(), (groups.var(2, correction=0) + 1e-3).rsqrt(), rtol=1e-6, atol=0)

    @by_backend
    @by_layout
    @pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
    @by_dtype
    def test_tiles_are_the_whole(self, layout: str, activation: str, dtype: torch.dtype, backend: str) -> None:
        """Tiled decoding: statistics of the whole image once, applied tile by tile."""
        case = make_case((2, 12, 10, 8), dtype=dtype)
        x = LAYOUTS[layout](case.x)

        def apply(x: Tensor, **statistics: object) -> Tensor:
            return group_norm(x, 3, case.weight, case.bias, activation=activation, backend=backend, **statistics)

        whole, statistics = apply(x), group_norm_statistics(x, 3, backend=backend)
        tiles = torch.cat(
            [torch.cat([apply(t, statistics=statistics) for t in rows.split(3, 3)], 3) for rows in x.split(4, 2)], 2
        )
        near = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(tiles, whole, rtol=near, atol=near)

    @by_backend
    @by_layout
    def test_gradients_flow_through_and_to_them(self, layout: str, backend: str) -> None:
        """Statistics of the input itself, as arguments, have the gradients of the norm in all."""
        case = make_case((2, 12, 5, 3))
        case = Case(LAYOUTS[layout](case.x), case.weight, case.bias, case.upstream)

        def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            statistics = group_norm_statistics(x, 3)
            return group_norm(x, 3, w, b, activation="silu", statistics=statistics, backend=backend)

        assert_agrees(run(norm, case), case, group_set(3), activation="silu")

    @by_backend
    @pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
    def test_derivatives_are_numeric_ones(self, activation: str | None, backend: str) -> None:
        x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 4, 3), (4,), (4,)))
        mean, rstd = torch.randn(2, 2, dtype=torch.float64), torch.rand(2, 2, dtype=torch.float64) + 0.5
        inputs = (x, mean.requires_grad_(), rstd.requires_grad_(), w, b)

        def norm(x: Tensor, mean: Tensor, rstd: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return group_norm(x, 2, w, b, activation=activation, statistics=(mean, rstd), backend=backend)

        assert gradcheck(norm, inputs)
        assert gradgradcheck(norm, inputs)

    def test_the_module_applies_them_to_what_has_one_element_a_group(self) -> None:
        norm, x = GroupNorm(4, 4), torch.randn(2, 4, 6)
        tiles = [norm(t, statistics=group_norm_statistics(x, 4)) for t in x.split(1, 2)]
        torch.testing.assert_close(torch.cat(tiles, 2), norm(x))


class TestMask:
    def padded(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, list[Tensor]]:
        """A batch of samples of other lengths, what is valid in it, and the samples."""
        samples = [torch.randn(12, length, 3, dtype=torch.float64).to(dtype) for length in (5, 2, 7)]
        x, mask = torch.full((3, 12, 7, 3), torch.nan, dtype=dtype), torch.zeros(3, 7, 3, dtype=torch.bool)
        for i, sample in enumerate(samples):
            x[i, :, : sample.shape[1]], mask[i, : sample.shape[1]] = sample, True
        return x, mask, samples

    @by_backend
    @by_layout
    @by_dtype
    def test_each_sample_is_what_it_is_alone_and_padding_is_zero(
        self, layout: str, dtype: torch.dtype, backend: str
    ) -> None:
        x, mask, samples = self.padded(dtype)
        case = make_case((3, 12), dtype=dtype)
        y = group_norm(LAYOUTS[layout](x), 4, case.weight, case.bias, activation="silu", mask=mask, backend=backend)
        assert not y.movedim(1, -1)[~mask].any()
        for got, sample in zip(y, samples, strict=True):
            alone = Case(sample[None], case.weight, case.bias, torch.zeros_like(sample[None]))
            assert_agrees(got[None, :, : sample.shape[1]], alone, group_set(4), activation="silu")

    @by_backend
    def test_gradients_are_those_of_the_samples_alone(self, backend: str) -> None:
        x, mask, samples = self.padded()
        case, upstream = make_case((3, 12)), torch.randn(3, 12, 7, 3, dtype=torch.float64)
        got = with_gradients(
            lambda x, w, b: group_norm(x, 4, w, b, activation="gelu", mask=mask, backend=backend),
            (x, case.weight, case.bias),
            upstream,
        )
        alone = [
            with_gradients(
                lambda x, w, b: group_norm(x, 4, w, b, activation="gelu", backend="reference"),
                (sample[None], case.weight, case.bias),
                upstream[i : i + 1, :, : sample.shape[1]],
            )
            for i, sample in enumerate(samples)
        ]
        assert not got[1].movedim(1, -1)[~mask].any()
        for i, sample in enumerate(samples):
            torch.testing.assert_close(got[1][i, :, : sample.shape[1]], alone[i][1][0])
        for j in (2, 3):
            torch.testing.assert_close(got[j], sum(one[j] for one in alone))

    @pytest.mark.parametrize("shape", [(1, 7, 1), (3, 1, 1), (1, 1, 3), (3, 7, 1)])
    def test_an_axis_of_one_stands_for_all(self, shape: tuple[int, ...]) -> None:
        x = torch.randn(3, 12, 7, 3, dtype=torch.float64)
        mask = torch.rand(shape) < 0.7
        mask[..., 0] = True
        whole = mask.expand(3, 7, 3).contiguous()
        torch.testing.assert_close(group_norm(x, 4, mask=mask), group_norm(x, 4, mask=whole))
        for few, many in zip(
            group_norm_statistics(x, 4, mask=mask), group_norm_statistics(x, 4, mask=whole), strict=True
        ):
            torch.testing.assert_close(few, many)

    def test_a_sample_without_a_valid_position_is_zero_and_has_no_gradient(self) -> None:
        x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
        y = group_norm(x, 2, activation="gelu", mask=torch.tensor([[True] * 3, [False] * 3]))
        y.backward(torch.randn_like(y))
        assert not y[1].any()
        assert not x.grad[1].any()
        assert x.grad[0].any()

    def test_derivatives_are_numeric_ones(self) -> None:
        x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
        mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
        assert gradcheck(lambda x: group_norm(x, 2, activation="silu", mask=mask), [x])
        assert gradgradcheck(lambda x: group_norm(x, 2, activation="silu", mask=mask), [x])

    @by_backend
    def test_with_everything_at_once(self, backend: str) -> None:
        x, mask, _ = self.padded()
        r = torch.randn_like(x)
        want = group_norm(x + r, 4, activation="relu", mask=mask, backend="reference")
        out = torch.full_like(x, torch.nan)
        got = group_norm(x, 4, activation="relu", mask=mask, residual=r, out=out, backend=backend)
        assert got is out
        torch.testing.assert_close(got, want)

    def test_the_module_takes_one(self) -> None:
        x, mask, _ = self.padded(torch.float32)
        norm = GroupNorm(4, 12, activation="relu")
        torch.testing.assert_close(norm(x, mask=mask), group_norm(x, 4, activation="relu", mask=mask))


class TestOut:
    @by_backend
    @by_shape
    @pytest.mark.parametrize("from_layout", LAYOUTS)
    @pytest.mark.parametrize("to_layout", LAYOUTS)
    def test_it_is_written_and_returned(
        self, shape: tuple[int, ...], from_layout: str, to_layout: str, backend: str
    ) -> None:
        case = make_case(shape)
        out = LAYOUTS[to_layout](torch.full(shape, torch.nan, dtype=torch.float64))
        x = LAYOUTS[from_layout](case.x)
        got = group_norm(x, 3, case.weight, case.bias, activation="relu", out=out, backend=backend)
        assert got is out
        assert_agrees(out, case, group_set(3), activation="relu")

    @by_backend
    @by_layout
    @by_dtype
    def test_it_may_be_the_input(self, layout: str, dtype: torch.dtype, backend: str) -> None:
        case = make_case((2, 12, 9, 5), dtype=dtype)
        x = LAYOUTS[layout](case.x.clone())
        group_norm(x, 3, case.weight, case.bias, activation="silu", out=x, backend=backend)
        assert_agrees(x, case, group_set(3), activation="silu")

    @by_backend
    def test_it_may_be_the_residual(self, backend: str) -> None:
        case, r = make_case((2, 12, 9, 5)), torch.randn(2, 12, 9, 5, dtype=torch.float64)
        want = group_norm(case.x + r, 3, backend="reference")
        torch.testing.assert_close(group_norm(case.x, 3, residual=r, out=r, backend=backend), want)

    @by_backend
    def test_it_is_written_under_no_grad_whatever_requires_a_gradient(self, backend: str) -> None:
        x = torch.randn(2, 12, 5, requires_grad=True)
        out = torch.empty(2, 12, 5)
        with torch.no_grad():
            group_norm(x, 3, out=out, backend=backend)
        torch.testing.assert_close(out, group_norm(x.detach(), 3, backend="reference"))
