"""The shared sets against index formulas that know nothing of reshape."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groupnorm.errors import ArgumentError, DivisibilityError, ShapeError
from groupnorm.sets import ALL, EACH, Blocks, SharedSet, batch_set, group_set, instance_set, layer_set

Index = tuple[int, ...]
lengths = st.integers(1, 4)
positions = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def together(labels: Tensor) -> Tensor:
    """Entry ``[i, k]`` says whether elements ``i`` and ``k`` share statistics."""
    flat = labels.flatten()
    return flat[:, None] == flat[None, :]


def together_by(shape: Index, rule: Callable[[Index, Index], bool]) -> Tensor:
    """The same from a rule on two indices, asked for every pair."""
    indices = list(product(*map(range, shape)))
    return torch.tensor([[rule(i, k) for k in indices] for i in indices])


@given(N=lengths, groups=lengths, per_group=lengths, positions=positions)
def test_group_norm_shares_a_sample_and_a_run_of_channels(
    N: int, groups: int, per_group: int, positions: Index
) -> None:
    """Wu & He 2018, eq. 7: k_N = i_N and floor(k_C / (C/G)) = floor(i_C / (C/G))."""
    C = groups * per_group
    shape = (N, C, *positions)
    expected = together_by(shape, lambda i, k: k[0] == i[0] and k[1] // (C // groups) == i[1] // (C // groups))
    assert torch.equal(together(group_set(groups).labels(shape)), expected)


@pytest.mark.parametrize(
    ("shared", "rule"),
    [
        (batch_set(), lambda i, k: k[1] == i[1]),
        (layer_set(), lambda i, k: k[0] == i[0]),
        (instance_set(), lambda i, k: k[0] == i[0] and k[1] == i[1]),
        (SharedSet(EACH, ALL, EACH), lambda i, k: k[0] == i[0] and k[2:] == i[2:]),
        (SharedSet(Blocks(size=2), EACH), lambda i, k: k[0] // 2 == i[0] // 2 and k[1] == i[1]),
        (SharedSet(Blocks(size=2), Blocks(count=3)), lambda i, k: k[0] // 2 == i[0] // 2 and k[1] // 2 == i[1] // 2),
        (SharedSet(ALL, Blocks(count=3)), lambda i, k: k[1] // 2 == i[1] // 2),
        (SharedSet(EACH, ALL, Blocks(count=2)), lambda i, k: k[0] == i[0] and k[2] == i[2]),
    ],
    ids=["batch", "layer", "instance", "token", "ghost batch", "batch group", "groups of a batch", "image halves"],
)
def test_each_norm_shares_what_its_formula_says(shared: SharedSet, rule: Callable[[Index, Index], bool]) -> None:
    shape = (4, 6, 2, 3)
    assert torch.equal(together(shared.labels(shape)), together_by(shape, rule))


@pytest.mark.parametrize(("C", "G"), [(6, 2), (6, 3), (12, 2), (12, 4), (32, 8)])
def test_floor_of_channel_by_groups_is_another_partition(C: int, G: int) -> None:
    """A known report writes floor(k_C / G): C/G groups of G channels instead of G groups of C/G."""
    correct = together(group_set(G).labels((1, C)))
    mistyped = together_by((1, C), lambda i, k: k[1] // G == i[1] // G)
    assert not torch.equal(mistyped, correct)
    assert torch.equal(mistyped, together(group_set(C // G).labels((1, C))))


def test_floor_of_channel_by_groups_agrees_only_when_groups_are_the_root_of_the_channels() -> None:
    mistyped = together_by((1, 16), lambda i, k: k[1] // 4 == i[1] // 4)
    assert torch.equal(mistyped, together(group_set(4).labels((1, 16))))


@pytest.mark.parametrize(
    ("shared", "size"),
    [
        (batch_set(), 4 * 9),
        (layer_set(), 6 * 9),
        (instance_set(), 9),
        (group_set(3), 2 * 9),
        (SharedSet(Blocks(size=2), Blocks(count=3)), 2 * 2 * 9),
        (SharedSet(Blocks(count=2), EACH), 2 * 9),
        (SharedSet(EACH, ALL, EACH), 6),
    ],
)
def test_size_counts_the_elements_of_every_set(shared: SharedSet, size: int) -> None:
    shape = (4, 6, 3, 3)
    assert shared.size(shape) == size
    assert shared.labels(shape).flatten().bincount().tolist() == [size] * (math.prod(shape) // size)


def test_a_batch_of_one_makes_batch_norm_instance_norm() -> None:
    shape = (1, 6, 3)
    assert torch.equal(batch_set().labels(shape), instance_set().labels(shape))


@pytest.mark.parametrize("shared", [batch_set(), layer_set(), instance_set(), group_set(2)])
def test_an_empty_batch_has_empty_labels(shared: SharedSet) -> None:
    labels = shared.labels((0, 4, 3))
    assert labels.shape == (0, 4, 3)
    assert labels.dtype == torch.int64


@given(length=st.integers(1, 60), parts=st.integers(1, 60))
def test_count_and_size_are_two_ways_to_cut_an_axis(length: int, parts: int) -> None:
    if length % parts:
        with pytest.raises(DivisibilityError):
            Blocks(count=parts).split(length)
        with pytest.raises(DivisibilityError):
            Blocks(size=parts).split(length)
    else:
        assert Blocks(count=parts).split(length) == (parts, length // parts)
        assert Blocks(size=length // parts).split(length) == (parts, length // parts)


@pytest.mark.parametrize(
    "arguments", [{}, {"count": 2, "size": 2}, {"count": 0}, {"size": 0}, {"count": -1}, {"size": -2}]
)
def test_blocks_take_exactly_one_positive_number(arguments: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=r"expected exactly one of the two, at least 1"):
        Blocks(**arguments)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_shape_without_channels_is_refused(shape: Index) -> None:
    with pytest.raises(ShapeError, match=r"expected \(N, C, \*positions\)"):
        group_set(2).labels(shape)


@pytest.mark.parametrize(
    "shared", [SharedSet(Blocks(size=3), ALL), SharedSet(ALL, Blocks(count=4)), SharedSet(ALL, ALL, Blocks(count=2))]
)
def test_an_axis_that_does_not_divide_is_refused(shared: SharedSet) -> None:
    with pytest.raises(DivisibilityError):
        shared.labels((4, 6, 3))


def test_a_shared_set_is_a_value() -> None:
    assert group_set(4) == group_set(4) != group_set(2)
    assert len({group_set(4), group_set(4), layer_set()}) == 2
    with pytest.raises(FrozenInstanceError):
        group_set(4).samples = ALL
