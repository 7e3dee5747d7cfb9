"""The sentences of the report: none claims more than its interval."""

import pytest

from groupnorm.lab.report.findings import find, points
from groupnorm.lab.report.view import flatten, p_value
from lab.synthetic import make_run


def sentences(tmp_path, errors, *, x="batch_size", **options):
    """The findings about made-up last errors by (norm, batch size)."""
    result = make_run(tmp_path, **options)
    table = result.table
    for (norm, size), values in errors.items():
        rows = table.index[(table.norm == norm) & (table[x] == size) & (table.status == "finished")]
        table.loc[rows, "error"] = values[: len(rows)]
    return find(table, x)


GRID = {"norms": ["bn", "gn"], "batch_sizes": [32, 2]}
CLEAR = {
    ("bn", 2): [58.0, 58.1, 58.2],
    ("gn", 2): [2.0, 2.1, 1.9],
    ("bn", 32): [1.5, 1.55, 1.45],
    ("gn", 32): [2.0, 2.1, 1.9],
}


def test_a_clear_difference_is_said(tmp_path):
    found = sentences(tmp_path, CLEAR, **GRID)
    assert found.headline == "At batch size 2 BN's error is 58.1% and GN's 2.0%"
    assert "95% interval" in found.facts[0]
    assert "At batch size 32 BN's error is 1.5% and GN's 2.0%" in found.facts[1]
    assert not found.unfinished


def test_a_difference_within_its_interval_is_not_claimed(tmp_path):
    errors = CLEAR | {("bn", 2): [2.5, 1.0, 3.4]}
    found = sentences(tmp_path, errors, **GRID)
    assert found.headline == "At batch size 2 BN (2.3%) and GN (2.0%) cannot be told apart"


def test_equal_differences_have_no_interval(tmp_path):
    errors = CLEAR | {("bn", 2): [2.5, 2.6, 2.4]}
    found = sentences(tmp_path, errors, **GRID)
    assert found.headline == "At batch size 2 BN's error is 2.5% and GN's 2.0%"
    assert found.facts[0] == (
        "BN minus GN is +0.50 points with each of 3 seeds: there is no spread to compute an interval from."
    )


def test_one_seed_is_said(tmp_path):
    found = sentences(tmp_path, CLEAR, seeds=1, **GRID)
    assert found.headline.endswith("(one seed)")
    assert "no interval" in found.facts[0]
    assert not any("95% interval" in fact for fact in found.facts)


def test_seeds_that_did_not_finish_are_said(tmp_path):
    def ending(cell):
        return ("diverged", "nan") if (cell.norm, cell.batch_size, cell.seed) == ("bn", 2, 0) else ("finished", "")

    found = sentences(tmp_path, CLEAR, ending=ending, **GRID)
    assert "the 2 of 3 seeds that finished" in found.facts[0]
    assert "BN: diverged in 1 of 3 runs at batch size 2." in found.facts


@pytest.mark.parametrize(
    ("status", "said"), [("diverged", "diverged with every seed (3)"), ("undefined", "is undefined")]
)
def test_a_rival_that_fails_at_the_smallest_batch_is_the_headline(tmp_path, status, said):
    def ending(cell):
        return (status, "nan") if (cell.norm, cell.batch_size) == ("bn", 2) else ("finished", "")

    found = sentences(tmp_path, CLEAR, ending=ending, **GRID)
    assert found.headline == f"At batch size 2 BN {said}, GN's error is 2.0%"


def test_an_unfinished_run_compares_what_is_there(tmp_path):
    found = sentences(tmp_path, CLEAR, ending=lambda c: ("finished" if c.batch_size == 32 else "pending", ""), **GRID)
    assert found.headline == "At batch size 32 BN's error is 1.5% and GN's 2.0%"
    assert (found.unfinished, found.ended, found.total) == (True, 6, 12)


def test_a_single_norm_has_no_comparison(tmp_path):
    found = sentences(tmp_path, {("gn", 2): [2.0, 2.1, 1.9]}, norms=["gn"], batch_sizes=[2])
    assert found.headline == "At batch size 2 GN's error is 2.0%"


def test_numbers_for_readers():
    assert [points(value, 2) for value in (1.234, -1.234, -0.001, 0.0)] == ["+1.23", "−1.23", "0.00", "0.00"]
    assert [p_value(p) for p in (0.0, 0.0123, 0.5, float("nan"))] == ["< 0.001", "0.012", "0.50", "–"]
    assert flatten({"a": {"b": [1, 2]}, "c": None}) == {"a.b": "1, 2", "c": "–"}
