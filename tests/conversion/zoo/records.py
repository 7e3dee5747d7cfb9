"""The committed records of the matrix: what each network became when the page was written."""

import json
import platform
from pathlib import Path

import torch

from conversion.zoo.networks import RESTS_ON, versions
from groupnorm.environment import cores, cpu_name

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "docs" / "zoo.jsonl"
PAGE = ROOT / "docs" / "zoo.md"
REMEDY = "run `make zoo`, look at what changed in docs/zoo.md, and commit it if it is right"


def environment() -> dict:
    """What the records depend on besides the code."""
    return {
        "kind": "environment",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "libraries": versions(),
        "cpu": cpu_name(),
        "cores": cores(),
    }


def read() -> tuple[dict, list[dict]]:
    """The environment of the records, and a row for each network."""
    first, *rows = map(json.loads, RECORDS.read_text().splitlines())
    return first, rows


def comparable(library: str) -> bool:
    """Whether a library, and those its networks are made of, have the versions of the records.

    With others, a network may have other layers, and only what the conversion promises can be tested.
    """
    recorded, now = read()[0]["libraries"], versions()
    return all(recorded.get(name) == now[name] for name in (library, *RESTS_ON[library]))


def differences(library: str, name: str, row: dict) -> list[str]:
    """What differs between a row and the committed one, in words; nothing where they cannot be compared."""
    if not comparable(library):
        return []
    found = [old for old in read()[1] if (old["library"], old["name"]) == (library, name)]
    if not found:
        return [f"{library} {name} is not recorded; expected a row in {RECORDS.relative_to(ROOT)}: {REMEDY}"]
    return [
        f"{library} {name}: {what} is {row[what]}, and {found[0][what]} is recorded; expected the same: {REMEDY}"
        for what in ("norms", "becomes", "kept")
        if row[what] != found[0][what]
    ]
