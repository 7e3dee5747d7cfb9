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
from groupnorm.sets import (
    ALL,
    EACH,
    Blocks,
    SharedSet,
    Window,
    batch_set,
    general_set,
    ghost_set,
    group_set,
    instance_set,
    layer_set,
    merged_set,
)

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


@pytest.mark.parametrize("parts", [1, 4, 9, 18, 36])
def test_the_merged_axis_is_cut_across_channels(parts: int) -> None:
    """Zhou et al. 2020: channels and positions are one axis of 6 * 6 elements, channels outermost."""
    size = 36 // parts
    expected = together_by((2, 6, 2, 3), lambda i, k: flat(k) // size == flat(i) // size)
    assert torch.equal(together(merged_set(parts).labels((2, 6, 2, 3))), expected)


def flat(i: Index) -> int:
    """The place of an element of (2, 6, 2, 3) on the merged axis."""
    return (i[1] * 2 + i[2]) * 3 + i[3]


def test_blocks_of_samples_and_groups_of_channels_have_names() -> None:
    assert ghost_set(4) == SharedSet(Blocks(size=4), EACH)
    assert general_set(2, 8) == SharedSet(Blocks(size=2), Blocks(count=8))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_a_window_reaches_half_its_size_to_both_sides(size: int) -> None:
    """An even one reaches one further to the left, as torch.nn.LocalResponseNorm does."""
    before, after = size // 2, (size - 1) // 2
    shape = (2, 5, 4, 3)
    channels, positions = SharedSet(EACH, Window(size), EACH), SharedSet(EACH, EACH, Window(size))
    for i in product(*map(range, shape)):
        near = [range(x - before, x + after + 1) for x in i]
        rule = torch.tensor([k[0] == i[0] and k[1] in near[1] and k[2:] == i[2:] for k in product(*map(range, shape))])
        assert torch.equal(channels.members(shape, i), rule.view(shape))
        rule = torch.tensor(
            [k[:2] == i[:2] and k[2] in near[2] and k[3] in near[3] for k in product(*map(range, shape))]
        )
        assert torch.equal(positions.members(shape, i), rule.view(shape))
    assert (channels.size(shape), positions.size(shape)) == (size, size**2)


@pytest.mark.parametrize("shared", [batch_set(), layer_set(), instance_set(), group_set(2), merged_set(4)])
def test_the_members_of_a_block_are_those_with_its_label(shared: SharedSet) -> None:
    shape = (2, 4, 2)
    for i in product(*map(range, shape)):
        assert torch.equal(shared.members(shape, i), shared.labels(shape) == shared.labels(shape)[i])


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        (batch_set(), "each channel, over all samples and all positions"),
        (layer_set(), "each sample, over all channels and all positions"),
        (instance_set(), "each sample and channel, over all positions"),
        (group_set(8), "each sample and group of channels, over all positions"),
        (ghost_set(16), "each block of 16 samples and channel, over all positions"),
        (general_set(2, 8), "each block of 2 samples and group of channels, over all positions"),
        (merged_set(8), "each group of the merged channels and positions, over all samples"),
        (SharedSet(EACH, Window(5), EACH), "each sample and position, over 5 neighbouring channels"),
        (SharedSet(EACH, EACH, Window(3)), "each sample and channel, over 3 neighbouring positions a side"),
        (SharedSet(ALL, ALL), "over all samples and all channels and all positions"),
    ],
)
def test_a_set_in_words(shared: SharedSet, words: str) -> None:
    assert shared.words() == words


def test_the_axes_of_a_weight_have_other_words() -> None:
    words = layer_set().words("filter", "input channel", "position")
    assert words == "each filter, over all input channels and all positions"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": ALL, "channels": Window(3), "positions": EACH}, "expected EACH on the axes without a window"),
        ({"samples": EACH, "channels": Window(3)}, "expected EACH on the axes without a window"),
        ({"samples": EACH, "channels": Blocks(count=2), "positions": Window(3)}, "expected EACH"),
        ({"samples": ALL, "channels": Blocks(count=2), "positions": EACH, "merged": True}, "expected positions=ALL"),
    ],
)
def test_cuts_that_do_not_go_together_are_refused(options: dict[str, Blocks], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SharedSet(**options)


def test_windows_have_no_labels_and_no_blocks() -> None:
    with pytest.raises(ArgumentError, match=r"which do not overlap: use members\(\)"):
        SharedSet(EACH, Window(3), EACH).labels((2, 4, 3))
    with pytest.raises(ArgumentError, match=r"Window\(size=0\): expected at least 1"):
        Window(0)


def test_a_shared_set_is_a_value() -> None:
    assert group_set(4) == group_set(4) != group_set(2)
    assert len({group_set(4), group_set(4), layer_set()}) == 2
    with pytest.raises(FrozenInstanceError):
        group_set(4).samples = ALL
