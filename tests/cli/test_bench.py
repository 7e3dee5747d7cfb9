"""The command: a tiny shape from the arguments to the page, and what it refuses."""

import json
import re

import pytest
from typer.testing import CliRunner

from bench.synthetic import of_kernels, on_cpu, results
from groupnorm.bench.cases import listed
from groupnorm.bench.machine import machine, slug
from groupnorm.cli import app

TINY = ["--dtypes", "fp32", "--layouts", "contiguous", "--activations", "silu", "--peers", "torch"]


def invoke(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "200"})


def tiny(tmp_path, *arguments):
    return invoke("--shapes", "2x8x16x16:4", *TINY, "--seconds-per-case", 0, "--out", tmp_path, *arguments)


def test_a_tiny_shape_is_measured_kept_and_not_measured_again(tmp_path):
    result = tiny(tmp_path)
    assert result.exit_code == 0, result.output
    assert "2x8x16x16:4 fp32 contiguous silu" in result.output
    assert "x torch" in result.output
    assert "GB/s" in result.output
    (path,) = tmp_path.glob("*-2-threads.json")
    before = path.read_bytes()
    content = json.loads(before)
    assert content["machine"]["device"] == "cpu"
    entry = content["cases"]["2x8x16x16:4 fp32 contiguous silu"]
    assert entry["status"] == "measured"
    assert entry["stamp"]["torch"]
    result = tiny(tmp_path)
    assert "1 of 1 were measured before." in result.output
    assert path.read_bytes() == before


def test_what_bounds_it_is_told_at_the_end(tmp_path):
    found = results(tmp_path / f"{slug(machine('cpu', 2))}.json", machine("cpu", 2))
    cases = {case.key: on_cpu() for case in listed()}
    found.put("rates", of_kernels(call=20e-6, element=0.0))
    found.put("cases", cases)
    result = tiny(tmp_path)
    assert result.exit_code == 0, result.output
    assert re.search(r"forward\+backward │ all +│ +162 │ +3.50x │ +2\.\d\dx │ +2.80x │", result.output)


def test_a_wrong_kernel_ends_with_1(tmp_path, monkeypatch):
    from groupnorm.bench import contenders

    norm = contenders.group_norm
    monkeypatch.setattr(contenders, "group_norm", lambda *args, **options: norm(*args, **options) * 1.01)
    result = tiny(tmp_path)
    assert result.exit_code == 1
    assert "refused 2x8x16x16:4 fp32 contiguous silu: y is off by" in result.output
    (path,) = tmp_path.glob("*.json")
    entry = json.loads(path.read_text())["cases"]["2x8x16x16:4 fp32 contiguous silu"]
    assert entry["status"] == "refused"
    assert "timings" not in entry


def test_an_interrupt_ends_with_130(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("groupnorm.bench.conduct.measure", interrupted)
    result = tiny(tmp_path)
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "unett"], "did you mean 'unet'"),
        (["--dtypes", "fp33"], "unknown dtype 'fp33'"),
        (["--peers", "tensorflow"], "unknown peer 'tensorflow'"),
        (["--device", "tpu"], "expected cpu or cuda"),
    ],
)
def test_a_wrong_argument_ends_with_2(tmp_path, arguments, message):
    result = invoke("--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_the_page_of_nothing(tmp_path):
    page = tmp_path / "docs" / "speed.md"
    result = invoke("page", "--out", tmp_path / "none", "--page", page)
    assert result.exit_code == 0, result.output
    assert page.read_text().count("Not measured.") == 2


def test_doctor_tells_about_the_backends():
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert "backend cpu" in result.output
    assert "backend triton" in result.output
