"""What notebooks and the prompt show."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.tables import html_table


class Cells(HTMLParser):
    """The texts of a page, by tag."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))


def test_texts_are_escaped():
    found = Cells(html_table("a < b", ("<i>", "x"), [("1 & 2", "</td>")]))
    assert found.texts == [("p", "a < b"), ("th", "<i>"), ("th", "x"), ("td", "1 & 2"), ("td", "</td>")]


def model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def test_a_plan_is_a_table_and_its_text():
    plan = groupnorm.plan(model(), "gn:2")
    assert repr(plan) == str(plan)
    found = Cells(plan._repr_html_()).texts
    assert found[0] == ("p", plan.summary)
    assert [text for tag, text in found if tag == "td"] == ["1", "BatchNorm2d(8)", "gn:2"]


def test_a_report_is_the_table_of_its_plan_and_its_notes():
    network = model()
    network.norms = [network[1]]
    report = groupnorm.convert_(network, "gn:2")
    assert report.notes
    assert repr(report) == str(report)
    found = Cells(report._repr_html_()).texts
    assert [text for tag, text in found if tag == "p"] == [report.plan.summary, *report.notes]


def test_an_explanation_is_a_table_of_the_others():
    explanation = groupnorm.explain(torch.randn(2, 8, 4, 4), 4)
    found = Cells(explanation._repr_html_()).texts
    assert found[0] == ("p", f"{explanation.chosen} runs")
    cells = [text for tag, text in found if tag == "td"]
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == explanation.reasons


def test_the_catalog_is_a_table_and_a_line_for_each_norm():
    rows = groupnorm.catalog()
    lines = repr(rows).splitlines()
    assert [line.split()[0] for line in lines] == [row.spec for row in rows]
    assert all(row.advice in line for row, line in zip(rows, lines, strict=True))
    found = Cells(rows._repr_html_()).texts
    assert [text for tag, text in found if tag == "td"][::5] == [row.spec for row in rows]
    assert repr(rows[1]) == "Norm('gn': Group Normalization; Wu & He 2018, arXiv:1803.08494)"


@pytest.mark.parametrize("show", [str, repr])
def test_loaded_keys_are_counted(show):
    network = model()
    assert show(groupnorm.load_checkpoint_(network, network.state_dict())) == "7 keys loaded"
