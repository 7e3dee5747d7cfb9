"""The comparison that all other tests use can fail: each classic mistake is caught by it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agreement import Case, Norm, Outcome, assert_agrees, definition, make_case, run
from groupnorm.sets import group_set

GROUPS = 4
SHAPE = (3, 24, 5, 3)


def grouped(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], GROUPS, -1)


def affine(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return y.view(SHAPE) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


def moments(x: Tensor, correction: int = 0) -> tuple[Tensor, Tensor]:
    return grouped(x).mean(2, keepdim=True), grouped(x).var(2, correction=correction, keepdim=True)


def correct(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = moments(x)
    return affine((grouped(x) - mean) / (var + 1e-5).sqrt(), weight, bias)


def unbiased_variance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = moments(x, correction=1)
    return affine((grouped(x) - mean) / (var + 1e-5).sqrt(), weight, bias)


def eps_outside_the_root(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = moments(x)
    return affine((grouped(x) - mean) / (var.sqrt() + 1e-5), weight, bias)


def groups_and_group_size_swapped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, SHAPE[1] // GROUPS, weight, bias)


def channels_dealt_in_turn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dealt = torch.arange(SHAPE[1]).view(-1, GROUPS).t().flatten()
    return affine(F.group_norm(x[:, dealt], GROUPS)[:, dealt.argsort()], weight, bias)


def no_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, GROUPS, weight, 0 * bias)


def gradient_ignores_the_statistics(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = moments(x.detach())
    return affine((grouped(x) - mean) / (var + 1e-5).sqrt(), weight, bias)


def float32_inside(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x.float(), GROUPS, weight.float(), bias.float()).double()


MISTAKES: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    unbiased_variance,
    eps_outside_the_root,
    groups_and_group_size_swapped,
    channels_dealt_in_turn,
    no_bias,
    gradient_ignores_the_statistics,
    float32_inside,
]


def test_the_comparison_passes_a_correct_group_norm() -> None:
    case = make_case(SHAPE)
    assert_agrees(run(correct, case), case, group_set(GROUPS))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
def test_the_comparison_catches(mistake: Norm) -> None:
    case = make_case(SHAPE)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_agrees(run(mistake, case), case, group_set(GROUPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_comparison_catches_an_unbiased_variance_in_low_precision(dtype: torch.dtype) -> None:
    case = make_case((2, 8, 1, 2), dtype=dtype)  # m = 4: the ratio is 1.15
    wrong = run(lambda x, w, b: F.group_norm(x, 4, w * (3 / 4) ** 0.5, b), case)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_agrees(wrong, case, group_set(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_comparison_catches_a_gradient_without_the_statistics_in_low_precision(dtype: torch.dtype) -> None:
    case = make_case(SHAPE, dtype=dtype)
    wrong = run(lambda x, w, b: gradient_ignores_the_statistics(x.float(), w.float(), b.float()).to(dtype), case)
    with pytest.raises(AssertionError, match="dx: Tensor-likes are not close"):
        assert_agrees(wrong, case, group_set(GROUPS))


def test_an_upstream_of_ones_would_pass_a_dead_backward() -> None:
    """Why upstream gradients are random: under ``.sum()`` without weights the true gradient is zero."""
    random = make_case(SHAPE, affine="none")
    ones = Case(random.x, None, None, torch.ones_like(random.x))

    def dead(case: Case) -> Outcome:
        y = definition(group_set(GROUPS))(case.x, None, None)
        return Outcome(y, torch.zeros_like(y), None, None)

    assert_agrees(dead(ones), ones, group_set(GROUPS))
    with pytest.raises(AssertionError, match="dx: Tensor-likes are not close"):
        assert_agrees(dead(random), random, group_set(GROUPS))
