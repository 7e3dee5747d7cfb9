"""The catalog says what the layers do."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_agrees, make_case
from groupnorm import norm_layer
from groupnorm.nn.catalog import CATALOG, MAX_GROUPS, Norm, default_groups

ROWS = list(CATALOG.values())
by_row = pytest.mark.parametrize("row", ROWS, ids=[row.spec for row in ROWS])


@by_row
def test_a_row_is_filed_under_its_spec_and_says_everything(row: Norm) -> None:
    assert CATALOG[row.spec] is row
    assert all((row.title, row.paper, row.axes, row.advice))
    assert row.spec == "none" or re.search(r"\d{4}, arXiv:\d{4}\.\d{4,5}$", row.paper)


@by_row
@pytest.mark.parametrize("channels", [6, 48])
def test_the_layer_of_a_spec_shares_what_its_row_says(row: Norm, channels: int) -> None:
    case = make_case((4, channels, 3, 2), affine="none")
    layer, shared = norm_layer(row.spec)(channels, dtype=torch.float64), row.shared(channels)
    if shared is None:
        assert torch.equal(layer(case.x), case.x)
    else:
        assert_agrees(layer(case.x), case, shared)


@by_row
def test_the_drawn_set_fits_the_six_channels_of_the_papers_figure(row: Norm) -> None:
    assert (row.drawn is None) == (row.shared(6) is None)
    assert row.drawn is None or row.drawn.labels((2, 6, 4)).shape == (2, 6, 4)


@given(st.integers(1, 3000))
def test_the_default_is_the_largest_divisor_up_to_32(channels: int) -> None:
    groups = default_groups(channels)
    assert channels % groups == 0
    assert groups <= MAX_GROUPS == 32
    assert not any(channels % g == 0 for g in range(groups + 1, MAX_GROUPS + 1))
