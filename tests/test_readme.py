"""Every code block of the README runs, and prints what the README says."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
QUICK = ["--limit-train", "64", "--limit-val", "20", "--epochs", "1", "--seeds", "1", "--batch-sizes", "16"]

OWN = """
import torch
from torch import nn

def factory(norm_layer):
    return nn.Sequential(nn.Conv2d(1, 32, 3), norm_layer(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))

def function():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(80, 1, 8, 8, generator=generator), torch.arange(80) % 10
    return images, labels, images, labels
"""


def blocks(language):
    return [text for found, text in BLOCKS if found == language]


def test_the_readme_has_no_block_that_these_tests_do_not_know():
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}


def test_python_blocks_run_in_order_and_print_what_is_written(tmp_path, monkeypatch):
    import groupnorm.lab

    monkeypatch.chdir(tmp_path)
    compare = groupnorm.lab.compare
    quick = {"limit_train": 64, "limit_val": 20, "epochs": 1, "seeds": 1, "progress": False}
    monkeypatch.setattr(groupnorm.lab, "compare", lambda **options: compare(**options, **quick))
    namespace = {}
    printed = []
    for block in blocks("python"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, "README.md", "exec"), namespace)
        printed.append(out.getvalue())
    assert namespace["y"].shape == (2, 256, 14, 14)
    assert blocks("text")[0] in printed
    assert (tmp_path / "runs" / "readme" / "run.json").exists()


def commands():
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith("groupnorm")]


@pytest.mark.parametrize("command", commands())
def test_commands_run(command, tmp_path, monkeypatch):
    """With little data and `package.module` standing for a module of the user's own."""
    from groupnorm.lab.cli import app

    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.replace("package.module", "own"))[1:]
    result = CliRunner().invoke(app, words + (QUICK if words[0] == "compare" else []))
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output


def test_install_lines_are_the_ones_that_work():
    """pip resolves the same requirement that the README names; the environment that runs this was made by it."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if not line.startswith("groupnorm")]
    assert lines[0] == "python3 -m venv .venv"
    assert lines[1] == ". .venv/bin/activate"
    words = shlex.split(lines[2])
    assert words[0] == "pip"
    assert len(lines) == 3
    command = [sys.executable, "-m", *words, "--dry-run", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)


def test_the_printed_table_is_that_of_the_defaults():
    """The README shows the output of the defaults as they are now: every norm and batch size has its entry."""
    from groupnorm.lab.comparison import Comparison

    output = blocks("text")[1]
    for norm in Comparison().norms:
        assert re.search(rf"│ {norm} ", output)
    header = output.splitlines()[2]
    assert [int(size) for size in re.findall(r"\d+", header)] == list(Comparison().batch_sizes)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), target
