"""The code blocks of a Markdown page, and how the tests run them."""

import contextlib
import io
import re
import shlex
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
QUICK = ["--limit-train", "64", "--limit-val", "20", "--epochs", "1", "--seeds", "1", "--batch-sizes", "16"]
_FILE = re.compile(r"^# (\w+\.py)\n", re.M)
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


def languages(page: Path) -> set[str]:
    """The languages of a page's blocks."""
    return {language for language, _ in FENCE.findall(page.read_text())}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[str]:
    """Its lines of shell that call this package."""
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("groupnorm")]


def run_python(page: Path) -> dict[str, Any]:
    """Run the Python blocks of a page in order; where a block of text follows one, that is what it prints.

    A block whose first line is ``# NAME.py`` is that file in the current folder.
    """
    source = page.read_text()
    found = list(FENCE.finditer(source))
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block, following in zip_longest(found, found[1:]):
        if block[1] != "python":
            continue
        if named := _FILE.match(block[2]):
            Path(named[1]).write_text(block[2])
            sys.modules.pop(Path(named[1]).stem, None)
            continue
        lines = "\n" * source.count("\n", 0, block.start(2))  # so that a traceback names the line of the page
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(lines + block[2], str(page), "exec"), namespace)
        if following and following[1] == "text" and not source[block.end() : following.start()].strip():
            assert out.getvalue() == following[2], f"{page}: what follows the block is not what it prints"
    for name in _FILE.findall(source):
        sys.modules.pop(Path(name).stem, None)  # another page has another file of this name
    return namespace


def _draw(root: Path) -> None:
    from PIL import Image

    for split, count in (("train", 32), ("val", 10)):
        for shade, name in ((60, "cat"), (190, "dog")):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.new("RGB", (12, 8), (shade, i, 255 - i)).save(folder / f"{i}.png")


def run_command(command: str) -> str:
    """Run a command of a page in this process, with little data, of the reader too; its output.

    A module ``own`` stands for the reader's, and a folder ``pets`` holds images.
    """
    from groupnorm.cli import app

    Path("own.py").write_text(OWN)
    _draw(Path("pets"))
    words = shlex.split(command.replace("package.module", "own"))[1:]
    result = CliRunner().invoke(app, words + (QUICK if words[0] == "compare" else []))
    assert result.exit_code == 0, result.output
    return result.output
