"""Every code block of the README runs, and prints what the README says."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from blocks import ROOT, blocks, commands, languages, run_command, run_python

README = ROOT / "README.md"


def test_the_readme_has_no_block_that_these_tests_do_not_know():
    assert languages(README) == {"bash", "python", "text"}


def test_python_blocks_run_in_order_and_print_what_is_written(tmp_path, monkeypatch):
    import groupnorm.lab

    monkeypatch.chdir(tmp_path)
    compare = groupnorm.lab.compare
    quick = {"limit_train": 64, "limit_val": 20, "epochs": 1, "seeds": 1, "progress": False}
    monkeypatch.setattr(groupnorm.lab, "compare", lambda **options: compare(**options, **quick))
    namespace = run_python(README)
    assert namespace["y"].shape == (2, 256, 14, 14)
    assert (tmp_path / "runs" / "readme" / "run.json").exists()


@pytest.mark.parametrize("command", commands(README))
def test_commands_run(command, tmp_path, monkeypatch):
    """With little data and `package.module` standing for a module of the user's own."""
    monkeypatch.chdir(tmp_path)
    output = run_command(command)
    assert output
    assert "report.html" in output or "compare" not in command


def test_install_lines_are_the_ones_that_work():
    """pip resolves the same requirement that the README names; the environment that runs this was made by it."""
    lines = [
        line for block in blocks(README, "bash") for line in block.splitlines() if not line.startswith("groupnorm")
    ]
    assert lines[0] == "python3 -m venv .venv"
    assert lines[1] == ". .venv/bin/activate"
    words = shlex.split(lines[2])
    assert words[0] == "pip"
    assert len(lines) == 3
    command = [sys.executable, "-m", *words, "--dry-run", "--no-deps", "--no-build-isolation", "--quiet"]
    without_kernels = {**os.environ, "CXX": "/bin/false"}  # whose compiling takes a minute, and is tested elsewhere
    subprocess.run(command, cwd=ROOT, env=without_kernels, check=True, timeout=120)


def test_the_printed_table_is_that_of_the_defaults():
    """The README shows the output of the defaults as they are now: every norm and batch size has its entry."""
    from groupnorm.lab.sweeps.configuration import Comparison

    output = blocks(README, "text")[1]
    for norm in Comparison().norms:
        assert re.search(rf"│ {norm} ", output)
    header = output.splitlines()[2]
    assert [int(size) for size in re.findall(r"\d+", header)] == list(Comparison().batch_sizes)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        if "://" not in target:
            file, _, section = target.partition("#")
            assert (ROOT / file).exists(), target
            titles = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.M) if section else [""]
            assert section in [title.lower().replace(" ", "-") for title in titles], target
