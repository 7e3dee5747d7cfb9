"""The definition against a loop over elements, and against the four norms of torch."""

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from agreement import assert_agrees, definition, make_case, run
from groupnorm.ops.reference import average, normalize, statistics
from groupnorm.sets import ALL, EACH, Blocks, SharedSet, Window, batch_set, group_set, instance_set, layer_set
from tolerances import summing

SETS = {
    "batch": batch_set(),
    "layer": layer_set(),
    "instance": instance_set(),
    "group": group_set(3),
    "ghost batch": SharedSet(Blocks(size=2), EACH),
    "batch group": SharedSet(Blocks(size=2), Blocks(count=3)),
    "token": SharedSet(EACH, ALL, EACH),
}
by_name = pytest.mark.parametrize("shared", SETS.values(), ids=SETS)


def element_by_element(x: Tensor, shared: SharedSet, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Equations 1, 2 and 6, one element at a time, with exactly rounded sums."""
    sets: dict[int, list[float]] = defaultdict(list)
    labels = shared.labels(x.shape).flatten().tolist()
    values = x.flatten().tolist()
    for label, value in zip(labels, values, strict=True):
        sets[label].append(value)
    mean = {label: math.fsum(s) / len(s) for label, s in sets.items()}
    var = {label: math.fsum((v - mean[label]) ** 2 for v in s) / len(s) for label, s in sets.items()}
    channel = torch.arange(x.shape[1]).view(1, -1, *[1] * (x.dim() - 2)).expand_as(x).flatten().tolist()
    y = [
        (v - mean[s]) / math.sqrt(var[s] + eps) * weight[c].item() + bias[c].item()
        for v, s, c in zip(values, labels, channel, strict=True)
    ]
    return torch.tensor(y, dtype=torch.float64).view(x.shape)


@by_name
@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 3, 2), (2, 6, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("eps", [1e-5, 1e-1])
def test_the_reference_is_the_equations_element_by_element(
    shared: SharedSet, shape: tuple[int, ...], eps: float
) -> None:
    case = make_case(shape)
    y = element_by_element(case.x, shared, case.weight, case.bias, eps)
    assert_agrees(y, case, shared, eps=eps)


@given(N=st.sampled_from([2, 4]), per_group=st.integers(1, 4), groups=st.integers(1, 4), positions=st.integers(2, 5))
def test_the_reference_is_the_equations_for_any_number_of_groups(
    N: int, per_group: int, groups: int, positions: int
) -> None:
    case, shared = make_case((N, groups * per_group, positions)), group_set(groups)
    assert_agrees(element_by_element(case.x, shared, case.weight, case.bias, 1e-5), case, shared)


@pytest.mark.parametrize(
    ("shared", "torchs"),
    [
        (batch_set(), lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True)),
        (layer_set(), lambda x, w, b: F.layer_norm(x, x.shape[1:]) * w.view(-1, 1, 1) + b.view(-1, 1, 1)),
        (instance_set(), lambda x, w, b: F.instance_norm(x, weight=w, bias=b)),
        (group_set(3), lambda x, w, b: F.group_norm(x, 3, w, b)),
    ],
    ids=["batch", "layer", "instance", "group"],
)
def test_batch_layer_instance_and_group_norm_are_settings_of_one_definition(
    shared: SharedSet, torchs: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    case = make_case((4, 12, 3, 5))
    assert_agrees(run(torchs, case), case, shared)


@by_name
def test_the_variance_is_biased(shared: SharedSet) -> None:
    x = make_case((4, 6, 5)).x
    m = shared.size(x.shape)
    labels = shared.labels(x.shape)
    unbiased = torch.stack([x[labels == s].var(correction=1) for s in labels.unique()])
    biased = torch.stack([statistics(x, shared)[1][labels == s][0] for s in labels.unique()])
    ratio = (unbiased / biased).sqrt()
    torch.testing.assert_close(
        ratio, torch.full_like(ratio, math.sqrt(m / (m - 1))), rtol=2 * summing(m, x.dtype), atol=0
    )


@by_name
def test_a_constant_input_gives_the_bias_and_a_slope_of_one_by_the_root_of_eps(shared: SharedSet) -> None:
    """With var = 0 the scale is 1 / sqrt(eps): finite, and the gradient is dy less its mean, times it."""
    case = make_case((4, 6, 2))
    x = torch.full_like(case.x, 0.75).requires_grad_()  # exact in binary, and so is its mean
    eps = 1e-5
    y = normalize(x, shared, None, case.bias, eps)
    assert torch.equal(y, case.bias.view(1, -1, 1).expand_as(y))
    y.backward(case.upstream)
    blocks = case.upstream.reshape(shared.blocks(x.shape))
    centred = (blocks - blocks.mean((1, 3, 5), keepdim=True)).reshape(x.shape)
    torch.testing.assert_close(x.grad / centred, torch.full_like(x, 1 / math.sqrt(eps)), rtol=1e-12, atol=0)


@by_name
def test_each_set_comes_out_with_mean_zero_and_variance_one_less_the_share_of_eps(shared: SharedSet) -> None:
    x, eps = make_case((4, 6, 7)).x, 1e-2
    _, var = statistics(x, shared)
    mean_y, var_y = statistics(normalize(x, shared, eps=eps), shared)
    bound = 4 * summing(shared.size(x.shape), x.dtype)
    torch.testing.assert_close(mean_y, torch.zeros_like(mean_y), rtol=0, atol=bound)
    torch.testing.assert_close(var_y, var / (var + eps), rtol=0, atol=bound)


@by_name
def test_the_reference_has_derivatives_of_first_and_second_order(shared: SharedSet) -> None:
    case = make_case((2, 6, 2))
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    assert gradcheck(definition(shared), inputs)
    assert gradgradcheck(definition(shared), inputs)


@pytest.mark.parametrize(
    "shared",
    [SharedSet(EACH, Window(n), EACH) for n in (1, 2, 3, 5, 8)] + [SharedSet(EACH, EACH, Window(n)) for n in (1, 3, 4)],
    ids=str,
)
def test_the_average_over_a_window_counts_the_zeros_beyond_the_border(shared: SharedSet) -> None:
    x = make_case((2, 5, 4, 3)).x
    expected = torch.zeros_like(x)
    for i in product(*map(range, x.shape)):
        expected[i] = x[shared.members(x.shape, i)].sum() / shared.size(x.shape)
    torch.testing.assert_close(average(x, shared), expected, rtol=0, atol=summing(shared.size(x.shape), x.dtype) * 10)
