"""How many groups a layer gets."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupnorm.conversion.groups import policy_of, resolve
from groupnorm.errors import ArgumentError


@pytest.mark.parametrize(
    ("policy", "channels", "positions", "groups", "remark"),
    [
        ("auto", 64, 49, 32, ""),
        ("auto", 24, 49, 12, ""),
        ("auto", 512, 1, 32, ""),
        ("auto", 2, 1, 1, "no more groups of 2 channels divide 2: one group, which is layer norm"),
        ("auto", 17, 49, 1, "no more groups of 2 channels divide 17: one group, which is layer norm"),
        ("auto", 1, 49, 1, ""),
        (8, 64, 49, 8, ""),
        (64, 64, 49, 64, ""),
        (32, 24, 49, 12, "32 groups do not divide 24 channels: 12 of 2"),
        (32, 31, 49, 1, "32 groups do not divide 31 channels: one group, which is layer norm"),
        ("c16", 64, 49, 4, ""),
        ("c16", 40, 49, 2, "16 channels a group do not divide 40 channels: 2 of 20"),
        ("c16", 8, 49, 1, "16 channels a group do not divide 8 channels: 1 of 8"),
        (lambda channels, positions: channels // positions, 64, 4, 16, ""),
        (lambda channels, positions: "auto", 64, 4, 32, ""),
    ],
)
def test_the_number_and_what_there_is_to_say(policy, channels, positions, groups, remark):
    assert resolve(policy, channels, positions) == (groups, remark)


@given(st.integers(1, 300), st.none() | st.integers(1, 9), st.sampled_from(["auto", "c3", "c16"]) | st.integers(1, 300))
def test_every_number_divides_and_auto_leaves_more_than_one_element(channels, positions, policy):
    groups, _ = resolve(policy, channels, positions)
    assert channels % groups == 0
    if policy == "auto" and channels * (positions or 1) > 1:
        assert channels // groups * (positions or 1) > 1
        assert groups <= 32


@pytest.mark.parametrize("policy", [0, -1, 2.5, True, "c0", "many", None, lambda channels, positions: 0])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(ArgumentError, match="expected a number of at least 1, 'c16'"):
        resolve(policy, 64, 4)


def test_the_first_pattern_that_fits_holds():
    groups = {"layer1.*": 8, re.compile(r"\.bn2$"): "c4", "*": 16}
    assert [policy_of(groups, path) for path in ("layer1.0.bn2", "layer2.0.bn2", "bn1")] == [8, "c4", 16]
    assert policy_of({"layer1.*": 8}, "bn1") == "auto"
    assert policy_of(None, "bn1") == "auto"
    assert policy_of(4, "bn1") == 4
