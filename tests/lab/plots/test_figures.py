"""The static pictures: what is drawn, where, and that nothing is hidden."""

import inspect
import math
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from matplotlib._pylab_helpers import Gcf

from groupnorm.lab.analysis import curves
from groupnorm.lab.analysis.labels import find_baseline
from groupnorm.lab.plots import axis_diagrams, figures, style
from groupnorm.lab.plots.palette import styles
from groupnorm.nn.catalog import CATALOG
from groupnorm.sets import layer_set
from lab.synthetic import make_cell, make_run

TWELVE = ["bn", "gn", "ln", "in", "none", "gn:1", "gn:2", "gn:4", "gn:8", "gn:16", "gn:c4", "gn:c16"]
MADE = [figures.error_over_batch_size, figures.learning_curves, figures.throughput]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_figure_1(result):
    figure = figures.error_over_batch_size(result)
    axes = figure.axes[1]
    left, right = axes.get_xlim()
    assert left > 32 > 2 > right  # falls from left to right, as in the paper
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["32", "16", "8", "4", "2"]
    assert {"BN", "GN", "LN", "IN: undefined, one element per statistic"} <= set(texts(figure))
    lines = {line.get_color(): line for line in axes.lines}
    looks = styles(["bn", "gn", "ln", "in"])
    for norm in ("bn", "gn", "ln"):
        table = result.table[result.table.norm == norm]
        means = table.groupby("batch_size").error.mean().sort_index(ascending=False)
        assert lines[looks[norm].color].get_ydata() == pytest.approx(means.to_numpy())
    assert sum(len(dots.get_offsets()) for dots in axes.collections if hasattr(dots, "get_sizes")) >= 45


def test_the_hero_has_the_heaviest_line():
    looks = styles(TWELVE)
    assert find_baseline(TWELVE) == "gn"
    assert looks["gn"].width > max(look.width for norm, look in looks.items() if norm != "gn")


def test_no_two_norms_look_alike():
    looks = styles(TWELVE)
    assert len({look.color for look in looks.values()}) == len({look.dark for look in looks.values()}) == len(TWELVE)
    assert len({look.marker for look in looks.values()}) == len(TWELVE)
    assert styles(["bn", "gn"])["bn"].color == styles(["ln", "bn", "gn"])["bn"].color


@pytest.mark.parametrize("norm", TWELVE)
def test_colours_can_be_read(norm):
    look = styles(TWELVE)[norm]
    assert contrast(look.color, "#ffffff") >= 4.4
    assert contrast(look.dark, "#161b22") >= 4.5


def contrast(one, other):
    def luminance(color):
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_failures_are_marked_with_their_number(tmp_path):
    def ending(cell):
        return ("diverged", "nan") if (cell.norm, cell.batch_size, cell.seed) == ("bn", 2, 1) else ("finished", "")

    figure = figures.error_over_batch_size(make_run(tmp_path, norms=["bn", "gn"], ending=ending))
    assert "BN: diverged in 1 of 3 runs at batch size 2" in texts(figure)


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("case", ["nothing", "no cells", "one seed", "half", "one cell", "zero error"])
def test_every_stage_of_a_run_can_be_drawn(tmp_path, make, case, monkeypatch):
    options = {
        "nothing": {"ending": lambda cell: ("pending", "")},
        "no cells": {"cells": []},
        "one seed": {"seeds": 1},
        "half": {"ending": lambda cell: ("finished" if cell.batch_size > 8 else "running", "")},
        "one cell": {"cells": [make_cell("gn", 2, 0)]},
        "zero error": {"cells": [make_cell("gn", 2, 0)]},
    }[case]
    if case == "zero error":
        monkeypatch.setattr("lab.synthetic.final_error", lambda cell: -100.0)
    assert style.encode(make(make_run(tmp_path, **options)), "png", dpi=40).startswith(b"\x89PNG")


@pytest.mark.parametrize("make", MADE)
def test_vector_files_fit_a_light_and_a_dark_page(result, make):
    found = style.encode(make(result), "svg").decode()
    assert ET.fromstring(found).tag.endswith("svg")
    assert found.count(style.INK) == 1  # where the colour of the ink is set
    assert "currentColor" in found
    dark = found.partition("prefers-color-scheme:dark")[2].partition("</style>")[0]
    looks = styles(["bn", "gn", "ln"])
    assert all(f'[style*="stroke: {look.color}"]{{stroke:{look.dark}!important}}' in dark for look in looks.values())


def test_pyplot_is_not_involved(result):
    before = dict(Gcf.figs)
    assert figures.error_over_batch_size(result)._repr_png_().startswith(b"\x89PNG")
    assert Gcf.figs == before
    for module in (figures, style):
        source = inspect.getsource(module)
        assert "pyplot as" not in source
        assert "import pyplot" not in source


PAPER = {
    "bn": lambda k, i: k[1] == i[1],
    "ln": lambda k, i: k[0] == i[0],
    "in": lambda k, i: k[0] == i[0] and k[1] == i[1],
    "gn": lambda k, i: k[0] == i[0] and k[1] // 3 == i[1] // 3,
}
"""Equations 3, 4, 5 and 7 of Wu & He 2018 for C = 6 and G = 2."""


@pytest.mark.parametrize("norm", PAPER)
def test_cubes_show_the_equations_of_the_paper(norm):
    near = (0, 0, 5)
    elements = {
        "left": [(0, j, k) for j in range(6) for k in range(6)],
        "right": [(i, 0, k) for i in range(6) for k in range(6)],
        "top": [(i, j, 5) for i in range(6) for j in range(6)],
    }
    for face, places in elements.items():
        shown = [tile.shared for tile in axis_diagrams.tiles(CATALOG[norm].drawn[0]) if tile.face == face]
        assert shown == [PAPER[norm](place, near) for place in places]


def test_the_faces_of_a_cube_meet():
    tiles = axis_diagrams.tiles(layer_set())
    assert len(tiles) == 3 * 36
    corners = [
        {corner for tile in tiles if tile.face == face for corner in tile.corners} for face in ("left", "right", "top")
    ]
    assert axis_diagrams.project(0, 0, 6) in corners[0] & corners[1] & corners[2]


def test_shared_sets_show_each_family_once():
    figure = figures.shared_sets(["bn", "gn:8", "gn:c16", "in", "none", "unheard-of"])
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "Batch Normalization",
        "Group Normalization",
        "Instance Normalization",
    ]


def test_labels_move_apart_and_keep_their_order():
    assert curves.spread([0.0, 100.0], 10) == [0.0, 100.0]
    assert curves.spread([50.0, 50.0, 51.0], 10) == pytest.approx([40 + 1 / 3, 50 + 1 / 3, 60 + 1 / 3])
    assert curves.spread([1.0, 1.0, 2.0], 10, 0, 100) == [0, 10, 20]
    assert curves.spread([99.0, 100.0], 10, 0, 100) == [90, 100]
    moved = curves.spread([3.0, 1.0, 2.0, 30.0], 5)
    assert moved[1] < moved[2] < moved[0] < moved[3]
    assert all(b - a >= 5 - 1e-9 for a, b in zip(sorted(moved), sorted(moved)[1:], strict=False))


def test_a_mean_curve_ends_where_the_first_seed_stopped(tmp_path):
    def ending(cell):
        return ("diverged", "nan") if cell.seed == 1 else ("finished", "")

    result = make_run(tmp_path, norms=["bn"], batch_sizes=[2], ending=ending)
    means = curves.mean_curves(result.curves, "error")
    assert list(means["epoch"]) == [1, 2]
    assert set(means["seeds"]) == {3}
    first = result.curves[result.curves.epoch == 1]["error"]
    assert means["mean"].iloc[0] == pytest.approx(first.mean())
    assert len(curves.mean_curves(pd.DataFrame(), "error")) == 0


@pytest.mark.parametrize(
    ("errors", "log"), [([1.5, 60], True), ([2, 3], False), ([0, 60], False), ([], False), ([math.nan], False)]
)
def test_log_axis_only_where_it_is_needed(errors, log):
    assert curves.wants_log(errors) is log
