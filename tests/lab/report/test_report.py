"""The report in a real browser, and its sentences against the records."""

import re

import pandas as pd
import pytest

from chromium import chromium
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.report import render, write_report
from groupnorm.lab.report.notes import notes
from lab.synthetic import make_cell, make_run

EVIL = "<script>window.harmed=1</script><img src=x onerror=window.harmed=1>"
BREAKOUT = f"</script></title></style>{EVIL}"

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def open_file(browser, path, **options):
    """Open a file and gather what should not happen: messages, errors, requests for anything else."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    page = context.new_page()
    page.unexpected = []
    page.on("console", lambda message: page.unexpected.append(message.text))
    page.on("pageerror", lambda error: page.unexpected.append(str(error)))

    def note(request):
        if request.url != path.as_uri() and not request.url.startswith(("data:", "blob:")):
            page.unexpected.append(request.url)

    page.on("request", note)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    return page


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(result):
    return write_report(result, RunFolder(result.folder))


@pytest.fixture(scope="module")
def opened(browser, report):
    page = open_file(browser, report, permissions=["clipboard-read", "clipboard-write"], color_scheme="light")
    yield page
    page.context.close()


@pytest.fixture
def page(opened):
    """The report as it is when it was just opened; a test must not leave anything unexpected behind."""
    opened.evaluate(
        "if (document.getElementById('all').ariaPressed === 'false') document.getElementById('all').click()"
    )
    opened.click('[data-log="false"]')
    yield opened
    assert opened.unexpected == []


@pytest.fixture
def render_and_open(browser, tmp_path):
    """Opens the page of a result on a phone."""
    opened = []

    def open_result(result):
        path = tmp_path / "page.html"
        path.write_text(render(result), encoding="utf-8")
        opened.append(open_file(browser, path, viewport={"width": 390, "height": 844}))
        return opened[0]

    yield open_result
    assert opened[0].unexpected == []
    opened[0].context.close()


COLOURS = "[getComputedStyle(document.body).backgroundColor, document.getElementById('error').data[3].line.color]"
LIGHT, DARK = ["rgb(247, 247, 245)", "#d1410c"], ["rgb(14, 17, 22)", "#ff7d3c"]


def wait_until(page, expression, value):
    """Wait for an expression to have a value; the page's policy forbids Playwright to wait within the page."""
    for _ in range(200):
        if page.evaluate(expression) == value:
            return
        page.wait_for_timeout(25)
    assert page.evaluate(expression) == value


def shown_norms(page):
    """For each chart, the norms that have something drawn."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.chart')].map((div) => [div.id,
        [...new Set(div.calcdata.filter((d) => d[0].trace.visible === true && d[0].trace.x.length)
        .map((d) => d[0].trace.meta.norm))]]))"""
    )


def test_it_renders_without_errors_or_requests(page):
    assert page.unexpected == []
    assert page.locator(".chart .main-svg").count() >= 8
    assert "At batch size 2" in page.inner_text("h1")
    assert page.locator(".card .cube .shared").count() == 4 * 3


def test_the_layout_does_not_jump_while_it_loads(page):
    jumps = page.evaluate(
        """() => new Promise((done) => { let sum = 0; new PerformanceObserver((list) => { for (const entry of
        list.getEntries()) sum += entry.value; }).observe({ type: 'layout-shift', buffered: true });
        setTimeout(() => done(sum), 300); })"""
    )
    assert jumps < 0.01


def test_every_cell_is_shown(page, result):
    texts = dict(page.eval_on_selector_all("tr[data-cell]", "rows => rows.map(r => [r.dataset.cell, r.innerText])"))
    assert set(texts) == set(result.table["cell"])
    for row in result.table.itertuples():
        assert row.status in texts[row.cell]
        if row.status == "finished":
            assert f"{row.error:.2f}" in texts[row.cell]
        else:
            assert row.reason in texts[row.cell]


def test_a_norm_is_switched_in_all_charts_together(page):
    before = shown_norms(page)
    assert len(before) == 8
    assert all("bn" in norms for norms in before.values())
    page.click('.chip[data-norm="bn"]')
    assert page.get_attribute('.chip[data-norm="bn"]', "aria-pressed") == "false"
    after = shown_norms(page)
    assert after == {chart: [norm for norm in norms if norm != "bn"] for chart, norms in before.items()}
    assert page.locator("#error .annotation-text", has_text="BN").count() == 0
    page.click('.chip[data-norm="bn"]')
    assert shown_norms(page) == before
    page.click("#all")
    assert not any(shown_norms(page).values())


def test_the_axis_of_errors_is_switched_in_all_charts_of_errors(page):
    types = "[...document.querySelectorAll('.chart')].map((div) => div._fullLayout.yaxis.type)"
    assert page.evaluate(types) == ["linear"] * 8
    page.click('[data-log="true"]')
    assert page.evaluate(types) == ["log"] * 6 + ["linear"] * 2
    ranges = page.evaluate(
        "[...document.querySelectorAll('div[id^=curves-]')].map((d) => `${d._fullLayout.yaxis.range}`)"
    )
    assert len(ranges) == 5
    assert len(set(ranges)) == 1  # small multiples share their axis


def test_hover_tells_the_mean_and_its_interval(page):
    page.evaluate("Plotly.Fx.hover('error', [{curveNumber: 1, pointNumber: 4}])")
    page.wait_for_selector("#error .hovertext")
    text = page.text_content("#error .hovertext")
    assert re.search(r"BN · 2 images\s*mean 5\d\.\d\d%, 95% interval \d+\.\d\d to \d+\.\d\d, 3 seeds", text)


@pytest.mark.parametrize("width", [390, 768])
def test_a_small_screen_needs_no_horizontal_scrolling(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    wait_until(page, f"[...document.querySelectorAll('.chart .main-svg')].every((c) => c.clientWidth <= {width})", True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1280, "height": 900})


def test_dark_mode_is_dark_and_follows_a_change(page):
    assert page.evaluate(COLOURS) == LIGHT
    page.emulate_media(color_scheme="dark")
    wait_until(page, COLOURS, DARK)
    page.emulate_media(color_scheme="light")
    wait_until(page, COLOURS, LIGHT)


def test_it_can_be_printed_from_a_dark_screen(page):
    page.emulate_media(color_scheme="dark")
    page.evaluate(
        """addEventListener('beforeprint', () => { const chart = document.getElementById('error'); window.printed =
        [chart.data[3].line.color, chart._fullLayout.width, document.querySelector('details').open] })"""
    )
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("window.printed") == [LIGHT[1], 640, True]
    wait_until(page, COLOURS, DARK)
    page.emulate_media(color_scheme="light")
    wait_until(page, COLOURS, LIGHT)


def test_the_table_of_runs_sorts_both_ways_with_missing_numbers_last(page, result):
    column = "[...document.querySelectorAll('.sortable tbody tr')].map((row) => row.cells[4].dataset.value)"
    page.click(".sortable th:nth-child(5) button")
    assert page.get_attribute(".sortable th:nth-child(5)", "aria-sort") == "ascending"
    rising = page.evaluate(column)
    numbers = [float(value) for value in rising if value]
    assert numbers == sorted(result.table["error"].dropna())
    assert rising[len(numbers) :] == [""] * 15
    page.click(".sortable th:nth-child(5) button")
    assert page.evaluate(column) == [*rising[: len(numbers)][::-1], *[""] * 15]


def test_the_command_is_copied(page, result):
    page.click("#copy")
    wait_until(page, "document.getElementById('copy').textContent", "Copied")
    assert page.evaluate("navigator.clipboard.readText()") == result.request["command"]


def test_charts_and_tables_have_names(page):
    assert page.locator(".chart:not([role=img][aria-label])").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("svg.cube:not([aria-label])").count() == 0
    assert page.locator("button:not([type=button])").count() == 0


def test_no_script_but_the_pages_own_may_run(page):
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.harmed=1'}))")
    assert page.evaluate("window.harmed") is None
    assert ["Content Security Policy" in message for message in page.unexpected] == [True]
    page.unexpected.clear()


def test_nothing_from_the_records_is_executed(tmp_path, render_and_open):
    norms = ["gn", EVIL, BREAKOUT, '" onmouseover="window.harmed=1', "<b>plotly</b>"]
    cells = [make_cell(norm, 2, seed, model=BREAKOUT) for norm in norms for seed in range(2)]
    hostile = make_run(
        tmp_path / "run",
        cells=cells,
        ending=lambda cell: ("crashed", BREAKOUT) if cell.norm == EVIL and cell.seed else ("finished", ""),
        command=f"groupnorm compare {BREAKOUT}",
        dataset={"name": BREAKOUT, "note": BREAKOUT},
        config={EVIL: {BREAKOUT: EVIL}},
    )
    page = render_and_open(hostile)
    page.click(".chip >> nth=2")
    page.evaluate("Plotly.Fx.hover('error', [{curveNumber: 3, pointNumber: 0}])")
    assert page.evaluate("window.harmed") is None
    labels = page.locator("#error .annotation-text").all_text_contents()
    assert "<b>plotly</b>" in labels  # as it stands: not markup of Plotly's either
    assert page.locator("script").count() == 3
    assert page.locator("img, [onmouseover], [onerror]").count() == 0
    assert EVIL in page.inner_text(f'tr[data-cell="{cells[3].id}"]')


@pytest.mark.parametrize("case", ["nothing", "half", "twelve", "parts"])
def test_every_stage_and_size_of_a_run_has_a_page(tmp_path, render_and_open, case):
    several = ["bn", "gn", "ln", "in", "none", *(f"gn:{groups}" for groups in range(1, 8))]
    parts = [make_cell("bn", 32, seed, normalization_batch=part) for part in (None, 4) for seed in (0, 1)]
    options = {
        "nothing": {"ending": lambda cell: ("pending", "")},
        "half": {"ending": lambda cell: ("finished" if cell.batch_size > 4 else "running", ""), "seeds": 1},
        "twelve": {"norms": several, "batch_sizes": [32, 2], "seeds": 2},
        "parts": {"cells": parts, "dataset": None, "config": None},
    }[case]
    page = render_and_open(make_run(tmp_path / "run", **options))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".progress").count() == (case in ("nothing", "half"))
    if case == "half":
        assert "12 of 20 runs have ended" in page.inner_text(".progress")


def test_a_table_that_is_cut_off_says_how_to_see_the_rest(tmp_path, render_and_open, page):
    phone = render_and_open(make_run(tmp_path / "run"))
    hint = "#results .matrix .sideways"
    wait_until(phone, f"getComputedStyle(document.querySelector('{hint}')).display", "inline-block")
    assert phone.inner_text(hint).strip() == "Scroll sideways to see every column."
    assert not page.locator(hint).is_visible()


def test_one_difference_and_one_run_are_not_many(tmp_path):
    one = render(make_run(tmp_path / "one", norms=["bn", "gn"], batch_sizes=[32], seeds=2))
    assert "The difference to GN, with p value<" in one
    assert "p of the paired t test." in one
    several = render(make_run(tmp_path / "several", norms=["bn", "gn", "ln"], batch_sizes=[32], seeds=2))
    assert "All 2 differences to GN, with p values<" in several
    assert "not corrected for 2 comparisons." in several
    single = render(make_run(tmp_path / "single", norms=["gn"], batch_sizes=[32], seeds=1))
    assert "<span>1 run. Errors" in single


def test_resized_images_are_not_called_a_part_of_the_data(tmp_path):
    resized = notes(make_run(tmp_path / "resized", cells=[make_cell("gn", 32, 0, image_size=16)]))
    assert resized["Resized images"] == "Side in pixels: 16."
    assert "Reduced data" not in resized
    fewer = notes(make_run(tmp_path / "fewer", cells=[make_cell("gn", 32, 0, limit_train=64)]))
    assert fewer["Reduced data"].startswith("training images used: 64.")
    assert "Resized images" not in fewer


def test_a_request_for_nothing_has_a_page(tmp_path):
    assert "No run has ended yet" in render(make_run(tmp_path, cells=[]))


def test_the_same_records_give_the_same_files(tmp_path, result, report):
    other = make_run(tmp_path / "elsewhere")
    write_report(other, RunFolder(other.folder))
    names = [path.relative_to(result.folder) for path in result.folder.rglob("*") if path.is_file()]
    wanted = {"report.html", "table.csv", "summary.csv", "learning_curves.svg", "shared_sets.png"}
    assert wanted <= {name.name for name in names}
    for name in names:
        assert (result.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def test_tables_are_those_of_the_result(report, result):
    table = pd.read_csv(report.parent / "table.csv", keep_default_na=False, na_values=[""])
    assert list(table["cell"]) == list(result.table["cell"])
    summary = pd.read_csv(report.parent / "summary.csv").set_index(["norm", "batch_size"])
    errors = result.table.groupby(["norm", "batch_size"]).error.mean()
    assert summary.loc[("bn", 2), "error"] == pytest.approx(errors["bn", 2])
    assert summary.loc[("bn", 2), "difference"] == pytest.approx(errors["bn", 2] - errors["gn", 2])


@pytest.mark.parametrize("key", ["resolved", "unclear"])
def test_only_resolved_differences_are_bold(report, key):
    source = report.read_text(encoding="utf-8")
    pattern = r'<span class="{}">([^<]*)</span> <span class="interval">\[([^ ]*) to ([^\]]*)\]'
    found = re.findall(pattern.format("clear" if key == "resolved" else "unclear"), source)
    assert found
    for _, low, high in found:
        ends = [float(end.replace("−", "-")) for end in (low, high)]
        assert (ends[0] > 0 or ends[1] < 0) is (key == "resolved")
