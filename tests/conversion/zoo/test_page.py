"""The page of the matrix tells the networks of the matrix, and each as it was recorded."""

import importlib.util
from collections import Counter

import pytest

from conversion.zoo import records
from conversion.zoo.networks import LEFT_OUT, NETWORKS, RESTS_ON


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("page", records.ROOT / "tools" / "zoo" / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_network_has_the_name_of_another():
    assert [key for key, count in Counter(network.key for network in NETWORKS).items() if count > 1] == []


@pytest.mark.parametrize("library", RESTS_ON)
def test_every_network_is_recorded_and_no_other(library):
    if not records.comparable(library):
        pytest.skip(f"the records are of another {library}: {records.REMEDY}")
    recorded = [row["name"] for row in records.read()[1] if row["library"] == library]
    assert recorded == [network.name for network in NETWORKS if network.library == library], records.REMEDY


def test_the_page_is_written_from_the_records(page):
    first, rows = records.read()
    assert records.PAGE.read_text() == page.render(first, rows, LEFT_OUT), records.REMEDY


def test_a_difference_is_told_with_its_remedy():
    row = records.read()[1][0]
    library = row["library"]
    if not records.comparable(library):
        pytest.skip(f"the records are of another {library}: {records.REMEDY}")
    assert records.differences(library, row["name"], row | {"seconds": 1e6}) == []
    (told,) = records.differences(library, row["name"], row | {"becomes": {"gn:3": 1}})
    assert "becomes is {'gn:3': 1}" in told
    assert "make zoo" in told
    (told,) = records.differences(library, "none", row)
    assert "none is not recorded" in told


def test_other_versions_are_not_compared(monkeypatch):
    row = records.read()[1][0]
    other = records.versions() | {row["library"]: "0"}
    monkeypatch.setattr(records, "versions", lambda: other)
    assert records.differences(row["library"], row["name"], row | {"becomes": {}}) == []
    assert not records.comparable("segmentation-models-pytorch")  # its encoders are made of torchvision's
    assert [other["library"] for other in records.read()[1]].count(row["library"]) > 1


def test_the_convert_page_tells_the_numbers_of_the_records():
    rows = records.read()[1]
    text = (records.ROOT / "docs" / "convert.md").read_text()
    assert f"[{len(rows)} networks](zoo.md)" in text
