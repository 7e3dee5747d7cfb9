"""The picture that ranks the norms."""

import pandas as pd
import pytest

from groupnorm.lab.plots import style
from groupnorm.lab.plots.palette import styles
from groupnorm.lab.plots.ranking import ranking, standings
from groupnorm.lab.report import render
from lab import synthetic

MANY = ("bn", "gn", "ln", "in", "ghost", "brn", "rms")


def names(figure):
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_norms_are_ranked_by_the_error_at_the_smallest_batch_and_those_without_one_come_last():
    rows = [("a", 32, 1.0), ("a", 2, 9.0), ("b", 32, 3.0), ("b", 2, 4.0), ("c", 32, 2.0), ("c", 2, float("nan"))]
    summary = pd.DataFrame(rows, columns=["norm", "batch_size", "error"])
    assert ranking(summary, "batch_size") == ["b", "a", "c"]
    assert ranking(summary[:0], "batch_size") == []


def test_every_norm_has_its_row_and_a_failure_its_reason(tmp_path):
    result = synthetic.make_run(tmp_path, norms=MANY, batch_sizes=(32, 2))
    figure = standings(result)
    shown = names(figure)
    assert sorted(shown) == sorted(look.label for look in styles(MANY).values())
    assert shown[-2:] == ["BN", "IN"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["undefined in 3 of 3"]
    assert style.encode(figure, "svg") == style.encode(standings(result), "svg")


def test_a_norm_whose_error_doubles_is_marked(tmp_path):
    axes = standings(synthetic.make_run(tmp_path, norms=("bn", "gn"), batch_sizes=(32, 2))).axes[0]
    colors = {line.get_ydata()[0]: line.get_color() for line in axes.get_lines() if len(line.get_xdata()) == 2}
    assert colors[0] != colors[1]


@pytest.mark.parametrize("options", [{"cells": []}, {"batch_sizes": (8,)}, {"ending": lambda cell: ("pending", "")}])
def test_a_run_without_results_or_with_one_batch_size_is_drawn_too(tmp_path, options):
    assert style.encode(standings(synthetic.make_run(tmp_path, **options)), "png")


def test_the_report_of_many_norms_ranks_them(tmp_path):
    few = render(synthetic.make_run(tmp_path / "few", seeds=1, batch_sizes=(8,)))
    many = render(synthetic.make_run(tmp_path / "many", norms=MANY, seeds=1, batch_sizes=(8,)))
    assert 'id="standings"' in many
    assert 'id="standings"' not in few
