"""The documentation: its code runs, and the site that is built from it is whole, offline and readable."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from html import unescape
from html.parser import HTMLParser
from itertools import cycle
from urllib.parse import unquote

import pytest

import groupnorm.errors
from blocks import FENCE, ROOT, blocks, commands, languages, run_command, run_python
from chromium import chromium
from groupnorm.nn.catalog import catalog

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ROWS = catalog()
ERRORS = groupnorm.errors.__name__
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


def name(page):
    return str(page.relative_to(DOCS))


pytestmark = pytest.mark.xdist_group("docs")  # the site is built once


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run_in_order_and_print_what_is_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_there_is_no_block_that_these_tests_do_not_know(page):
    assert languages(page) <= {"bash", "python", "text"}
    assert page.read_text().count("```") == 2 * len(FENCE.findall(page.read_text()))  # none is indented or open
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    assert all(line.startswith(("groupnorm ", "pip install ", "make ")) for line in lines)


@pytest.mark.parametrize("command", sorted({c for page in PAGES for c in commands(page)} - {*commands(README)}))
def test_commands_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command(command)


class Page(HTMLParser):
    """What a page holds and points to."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded, self.cubes = set(), [], [], 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found.get("id"), found.get("name")}
        self.cubes += tag == "svg" and found.get("class") == "cube"
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(found["href"])
        if LOADS.get(tag) in found:
            self.loaded.append(found[LOADS[tag]])
        assert "srcset" not in found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stderr, result.stderr
    (folder / "404.html").unlink()  # only a server shows it, and its links start at the server's root
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.mark.parametrize("row", ROWS, ids=[row.spec for row in ROWS])
def test_every_norm_has_its_page_with_its_facts_and_pictures(row, site, pages):
    path = site / "cards" / f"{row.spec}.html"
    assert pages[path].cubes == len(row.drawn)
    text = unescape(path.read_text())
    assert all(fact in text for fact in (row.advice, row.axes if row.drawn else "", row.paper.partition("arXiv:")[0]))
    assert f'href="cards/{row.spec}.html"' in (site / "index.html").read_text()  # the navigation


def test_the_overview_shows_every_norm(site, pages):
    page = pages[site / "norms.html"]
    assert page.cubes == sum(len(row.drawn) for row in ROWS)
    assert {f"cards/{row.spec}.html" for row in ROWS} <= set(page.links)
    text = unescape((site / "norms.html").read_text())
    assert all(row.advice in text and row.axes in text for row in ROWS)


def test_every_source_has_its_page_and_every_formula_is_converted(site, pages):
    assert set(pages) == {site / page.relative_to(DOCS).with_suffix(".html") for page in PAGES}
    for path in pages:
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", path.read_text(), flags=re.S)
        assert not re.search(r"arithmatex|\$\$|:(class|func|math|meth):|\.\. math", text), path
    assert (site / "cards" / "gn.html").read_text().count("<math") > 10


def test_the_api_page_has_what_users_call_and_nothing_private(site, pages):
    found = pages[site / "api.html"].ids - {None}
    errors = [kind.__name__ for kind in vars(groupnorm.errors).values() if getattr(kind, "__module__", "") == ERRORS]
    named = [f"groupnorm.conversion.{name}" for name in ("recompute_statistics_", "load_checkpoint_", "plan")]
    named += [
        f"groupnorm.lab.{name}" for name in ("Comparison", "ConfigurationError", "RunFolderError", "load", "Result")
    ]
    named += [f"groupnorm.lab.Result.{name}" for name in ("table", "curves", "plot", "report")]
    named += ["groupnorm.lab.api.compare", "groupnorm.lab.analysis.statistics.differences"]
    named += [f"{ERRORS}.{name}" for name in errors if name[0].isupper()]
    assert set(named) <= found
    assert not [name for name in found if name.startswith("groupnorm.") and "._" in name]
    assert "groupnorm.errors.divisors" not in found


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        for target in page.loaded:
            assert not re.match(r"\w+:|//", target), (path, target)
            assert (path.parent / unquote(target)).resolve().is_file(), (path, target)
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(https?:|//)", path.read_text()), path


def test_links_lead_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"https://|mailto:", link):
                continue
            target, _, anchor = link.partition("#")
            found = (path.parent / unquote(target)).resolve() if target else path
            assert found in pages or found.is_file(), (path, link)
            assert not anchor or unquote(anchor) in pages[found].ids, (path, link)


@cache
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "tools" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_card_or_a_broken_formula_fails_the_build():
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File, Files

    every = [File(f"cards/{row.spec}.md", str(DOCS), "", use_directory_urls=False) for row in ROWS]
    assert hooks().on_files(Files(every))
    with pytest.raises(PluginError, match=rf"docs/cards/{ROWS[-1].spec}\.md: missing"):
        hooks().on_files(Files(every[:-1]))
    with pytest.raises(PluginError, match=r"in the formula \\frac"):
        hooks().formula(r"\frac{1", block=True, where="page.md")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def open_page(browser, path, **options):
    """A page, with all that it asks for and complains about."""
    page = browser.new_context(**options).new_page()
    page.unexpected = []
    page.on("console", lambda message: page.unexpected.append(message.text))
    page.on("pageerror", lambda error: page.unexpected.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else page.unexpected.append(r.url))
    page.goto(path.as_uri())
    return page


def test_the_search_works_without_a_server(browser, site):
    page = open_page(browser, site / "definition.html")
    page.click(".md-search__input")
    page.locator(".md-search__input").press_sequentially("ghost batch")
    page.wait_for_selector('.md-search-result__item a[href*="cards/ghost.html"]')
    assert page.unexpected == []
    page.context.close()


def test_every_page_fits_a_phone_and_a_dark_room(browser, site, pages):
    page = open_page(browser, site / "index.html", viewport={"width": 400, "height": 850}, color_scheme="light")
    luminance = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0) / 3"
    for scheme, path in zip(cycle(["light", "dark"]), sorted(pages), strict=False):
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
        assert (page.evaluate(luminance) > 128) == (scheme == "light"), path
    assert page.unexpected == []
    page.context.close()
