"""The grid: what it holds, and how a part of it is named."""

import math

import pytest
import torch

from groupnorm.bench.cases import DTYPES, HUGE, LAYOUTS, SHAPES, Case, Shape, find_shapes, grid, listed, names_of
from groupnorm.bench.tensors import HOSTILE, tensors
from groupnorm.errors import ArgumentError, DivisibilityError, UnknownNameError


def test_the_grid_has_every_shape_in_every_way_that_it_exists():
    cases = listed()
    assert len(cases) == len({case.key for case in cases}) == 13 * 12 + 6
    assert {case.shape for case in cases} == set(SHAPES)
    flat = [case for case in cases if len(case.shape.size) == 2]
    assert {case.layout for case in flat} == {"contiguous"}


def test_the_huge_input_is_bf16_and_forward_only():
    cases = grid([HUGE], ["fp32", "bf16"], LAYOUTS, ["silu"])
    assert math.prod(HUGE.size) > 2**31
    assert {case.dtype for case in cases} == {"bf16"}
    assert not any(case.trains for case in cases)


def test_shapes_are_found_by_family_by_themselves_and_by_their_numbers():
    assert find_shapes("all") == list(SHAPES)
    assert [str(shape) for shape in find_shapes("resnet, 2x8x16x16:4")] == [
        "32x256x56x56:32",
        "2x2048x7x7:32",
        "2x8x16x16:4",
    ]
    assert find_shapes("2x2048x7x7:32") == [SHAPES[9]]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("resnett", UnknownNameError, "did you mean 'resnet'"),
        ("2x8x16x16", UnknownNameError, "NxCxHxW:G"),
        ("2x8x16x16:3", DivisibilityError, "num_channels=8"),
        ("0x8x16x16:4", ArgumentError, "has a 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(names, error, message):
    with pytest.raises(error, match=message):
        find_shapes(names)


def test_an_unknown_name_is_refused():
    with pytest.raises(UnknownNameError, match="unknown dtype 'fp23'"):
        names_of("dtype", "fp32,fp23", tuple(DTYPES))


def test_bytes():
    case = Case(Shape((2, 8, 4, 4), 4), "bf16", "contiguous", "none")
    assert (case.nbytes, case.group_bytes) == (512, 64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_those_of_the_case_and_the_same_each_time(layout):
    case = Case(Shape((2, 8, 16, 16), 4), "bf16", layout, "none")
    once, again = (tensors(case, "cpu") for _ in range(2))
    assert once.x.dtype == once.weight.dtype == torch.bfloat16
    assert once.x.is_contiguous(memory_format=case.memory_format)
    assert once.dy.is_contiguous(memory_format=case.memory_format)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert once.dy.float().std() > 0.5, "a constant would hide a dead backward pass"


def test_hostile_input_is_hostile():
    case = Case(Shape((2, 8, 16, 16), 4), "fp32", "channels-last", "none")
    found = {kind: tensors(case, "cpu", fill).x.detach() for kind, fill in HOSTILE.items()}
    far, near, constant, outlier = found.values()
    assert abs(far.mean().item() - 1e4) < 1
    assert 0.5 < far.std().item() < 2
    assert 5e4 < near.abs().max().item() <= 6e4
    assert constant.reshape(2, 4, -1).std(2).max().item() == 0
    assert len(constant.unique()) == 8
    assert (outlier == 1e6).sum().item() == 1
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found.values())
