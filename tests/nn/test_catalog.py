"""The catalog says what the layers do, and every row has its class, its card and its test."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import groupnorm.nn
from agreement import assert_agrees, make_case
from groupnorm import norm_layer
from groupnorm.nn.catalog import CATALOG, catalog
from groupnorm.nn.norm import MAX_GROUPS, Norm, default_groups

ROOT = Path(__file__).parents[2]
ROWS = catalog()
by_row = pytest.mark.parametrize("row", ROWS, ids=[row.spec for row in ROWS])
SECTIONS = ["Formula", "When to use it", "Hyper-parameters", "What did not help", "Training and test time", "Paper"]
IS_ITS_DEFINITION = {"bn", "gn", "ln", "in", "ghost"}
"""Rows whose layers are nothing but the definition over their set."""


@by_row
def test_a_row_is_filed_under_its_spec_and_says_everything(row: Norm) -> None:
    assert CATALOG[row.spec] is row
    assert all((row.title, row.paper, row.axes, row.advice))
    assert row.spec == "none" or re.search(r"\d{4}, (arXiv:\d{4}\.\d{4,5}|NeurIPS)$", row.paper)


@by_row
def test_a_row_has_its_class(row: Norm) -> None:
    if not row.layer.__module__.startswith("torch."):
        assert getattr(groupnorm.nn, row.layer.__name__) is row.layer
    if row.make is not None and row.spec != "none":
        assert type(norm_layer(row.spec)(64)) is row.layer


@by_row
def test_a_row_has_its_card_with_every_section(row: Norm) -> None:
    card = (ROOT / "docs" / "cards" / f"{row.spec}.md").read_text()
    assert card.startswith(f"# {row.title}\n")
    assert re.findall(r"^## (.+)$", card, re.M)[: len(SECTIONS)] == SECTIONS
    link = re.search(r"arXiv:([\d.]+)", row.paper)
    assert link is None or f"https://arxiv.org/abs/{link[1]}" in card


@by_row
def test_a_row_has_its_test(row: Norm) -> None:
    """A layer of ours is tested in a file of its own name, a row of torch's beside its card."""
    module = row.layer.__module__.rpartition(".")[2] if row.layer.__module__.startswith("groupnorm.") else "torch_norms"
    assert (Path(__file__).parent / f"test_{module}.py").exists()


@pytest.mark.parametrize("spec", sorted(IS_ITS_DEFINITION))
@pytest.mark.parametrize("channels", [6, 48])
def test_the_layer_of_a_spec_shares_what_its_row_says(spec: str, channels: int) -> None:
    case = make_case((16, channels, 3, 2), affine="none")
    (shared,) = CATALOG[spec].sets(CATALOG[spec].resolve(channels))
    assert_agrees(norm_layer(spec)(channels, dtype=torch.float64)(case.x), case, shared)


@by_row
def test_the_drawn_sets_fit_the_cube_of_the_papers_figure(row: Norm) -> None:
    assert len(row.drawn) == len(row.sets(2))
    for shared in row.drawn:
        assert shared.members((6, 6, 6), (0, 3, 3)).any()


@given(st.integers(1, 3000))
def test_the_default_is_the_largest_divisor_up_to_32(channels: int) -> None:
    groups = default_groups(channels)
    assert channels % groups == 0
    assert groups <= MAX_GROUPS == 32
    assert not any(channels % g == 0 for g in range(groups + 1, MAX_GROUPS + 1))
