"""Means, intervals and paired differences against scipy and against numbers computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from groupnorm.errors import UnknownNameError
from groupnorm.lab.analysis.statistics import differences, estimate, summary, trends
from lab.synthetic import make_cell, make_run

ERRORS = st.lists(st.floats(0, 100).map(lambda value: round(value, 2)), min_size=2, max_size=12)


def table(rows):
    """A table of finished cells from ``(norm, batch size, seed, error)``; None is a diverged one."""
    return pd.DataFrame(
        {
            "norm": norm,
            "batch_size": size,
            "normalization_batch": size,
            "seed": seed,
            "status": "diverged" if error is None else "finished",
            "reason": "loss is nan" if error is None else "",
            "error": math.nan if error is None else error,
            "train_error": math.nan if error is None else error / 2,
            "seconds": 1.0,
            "images_per_second": 100.0,
        }
        for norm, size, seed, error in rows
    )


def test_by_hand():
    """1, 2, 3: mean 2, standard deviation 1, t(0.975; 2) = 4.30265, half an interval 4.30265 / sqrt(3)."""
    found = estimate([1, 2, 3])
    assert (found.n, found.mean, found.std) == (3, 2, 1)
    assert found.high - found.mean == pytest.approx(2.484138, abs=1e-6)
    assert found.mean - found.low == pytest.approx(2.484138, abs=1e-6)


@given(ERRORS)
def test_interval_and_p_are_scipys(errors):
    found = estimate(errors)
    if len(set(errors)) > 1:
        result = stats.ttest_1samp(errors, 0.0)
        interval = result.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9)
        assert found.p == pytest.approx(result.pvalue, rel=1e-6, abs=1e-12)
        assert found.std == pytest.approx(np.std(errors, ddof=1))
    else:
        assert (found.low, found.high, found.std) == (found.mean, found.mean, 0)


@pytest.mark.parametrize(("values", "n"), [([], 0), ([4.0], 1), ([4.0, math.nan], 1)])
def test_fewer_than_two_values_have_no_interval(values, n):
    found = estimate(values)
    assert found.n == n
    assert found.mean == 4.0 or n == 0
    assert all(math.isnan(value) for value in (found.low, found.high, found.std, found.p))


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [2.1 - 1.9, 2.2 - 2.0, 2.3 - 2.1]])
def test_equal_values_are_a_point_without_a_p_value_although_subtraction_rounds(values):
    found = estimate(values)
    assert (found.low, found.high) == (found.mean, found.mean)
    assert math.isnan(found.p)


def test_differences_are_scipys_paired_test():
    bn, gn = [5.0, 6.5, 7.1, 9.0], [2.0, 2.4, 2.1, 3.3]
    rows = [(norm, 2, seed, e) for norm, errors in (("bn", bn), ("gn", gn)) for seed, e in enumerate(errors)]
    (row,) = differences(table(rows)).to_dict("records")
    expected = stats.ttest_rel(bn, gn)
    interval = expected.confidence_interval(0.95)
    assert (row["norm"], row["baseline"], row["pairs"]) == ("bn", "gn", 4)
    assert row["difference"] == pytest.approx(np.mean(bn) - np.mean(gn))
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == pytest.approx(expected.pvalue)


def test_pairs_are_matched_by_seed_and_both_must_have_finished():
    rows = [
        ("gn", 2, 0, 1.0),
        ("gn", 2, 1, 10.0),
        ("gn", 2, 2, 5.0),
        ("bn", 2, 2, 6.0),
        ("bn", 2, 1, 11.5),
        ("bn", 2, 0, None),
    ]
    (row,) = differences(table(rows)).to_dict("records")
    assert row["pairs"] == 2
    assert row["difference"] == pytest.approx((1.5 + 1.0) / 2)
    assert row["baseline_error"] == pytest.approx(7.5)


def test_settings_are_compared_with_themselves_only():
    rows = [("gn", 32, 0, 1.0), ("gn", 2, 0, 3.0), ("bn", 32, 0, 2.0), ("bn", 2, 0, 50.0)]
    found = differences(table(rows)).set_index("batch_size")["difference"]
    assert dict(found) == {32: 1.0, 2: 47.0}


@pytest.mark.parametrize(
    ("norms", "baseline"), [(["bn", "gn:8", "gn"], "gn:8"), (["bn", "ln"], "bn"), (["gnome", "bn"], "gnome")]
)
def test_baseline_is_the_first_group_norm_else_the_first(norms, baseline):
    found = differences(table([(norm, 2, 0, 1.0) for norm in norms]))
    assert set(found["baseline"]) == {baseline}
    assert baseline not in set(found["norm"])


def test_unknown_baseline_is_named():
    with pytest.raises(UnknownNameError, match=r"baseline 'gm'.*did you mean 'gn'"):
        differences(table([("gn", 2, 0, 1.0)]), baseline="gm")


def test_a_diverged_cell_is_counted_and_not_averaged():
    (row,) = summary(table([("bn", 2, 0, 4.0), ("bn", 2, 1, None), ("bn", 2, 2, 6.0)])).to_dict("records")
    assert (row["cells"], row["finished"], row["diverged"], row["crashed"], row["pending"]) == (3, 2, 1, 0, 0)
    assert (row["error"], row["train_error"], row["reason"]) == (5.0, 2.5, "loss is nan")


def test_summary_of_records(tmp_path):
    def ending(cell):
        statuses = {"in": ("undefined", "one element"), "ln": ("crashed", "killed"), "gn": ("running", "")}
        return statuses.get(cell.norm, ("finished", "")) if cell.seed else ("pending", "")

    found = summary(make_run(tmp_path, ending=ending).table).set_index(["norm", "batch_size"])
    assert found.loc[("bn", 2), ["finished", "pending"]].tolist() == [2, 1]
    assert found.loc[("in", 2), ["undefined", "reason"]].tolist() == [2, "one element"]
    assert found.loc[("ln", 32), ["crashed", "reason"]].tolist() == [2, "killed"]
    assert found.loc[("gn", 32), ["running", "finished"]].tolist() == [2, 0]
    assert math.isnan(found.loc[("gn", 32), "error"])


def test_trend_is_paired_over_the_ends():
    rows = [
        ("gn", size, seed, error)
        for size, errors in ((32, (1.0, 2.0)), (4, (9.0, 9.0)), (2, (3.0, 5.0)))
        for seed, error in enumerate(errors)
    ]
    (row,) = trends(table(rows), "batch_size").to_dict("records")
    expected = stats.ttest_rel((3.0, 5.0), (1.0, 2.0)).confidence_interval(0.95)
    assert (row["largest"], row["smallest"], row["pairs"], row["change"]) == (32, 2, 2, 2.5)
    assert (row["change_low"], row["change_high"]) == pytest.approx((expected.low, expected.high))


def test_an_empty_table_gives_empty_tables(tmp_path):
    empty = make_run(tmp_path, cells=[]).table
    assert (
        list(summary(empty)["norm"])
        == list(differences(empty)["norm"])
        == list(trends(empty, "batch_size")["norm"])
        == []
    )


@pytest.mark.parametrize(
    ("sizes", "x"),
    [
        ([(32, None), (2, None)], "batch_size"),
        ([(32, None), (32, 2)], "normalization_batch"),
        ([(32, 4), (8, 4), (4, None)], "batch_size"),
    ],
)
def test_what_varies(tmp_path, sizes, x):
    cells = [make_cell("gn", size, 0, normalization_batch=part) for size, part in sizes]
    assert make_run(tmp_path, cells=cells).x == x
