"""A file of results for each device, written whole after every case: an interrupt loses the case that ran, no more."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from groupnorm.bench.machine import Facts, machine, slug, stamp, today
from groupnorm.files import RunFolderError, write_atomically

CASES, CALLS, RATES, HOSTILE, KEPT, MODELS = "cases", "calls", "rates", "hostile", "kept", "models"
TESTS, TRAINING = "tests", "training"
SECTIONS = (CASES, CALLS, RATES, HOSTILE, KEPT, MODELS, TESTS, TRAINING)
"""The last two are of a GPU: what became of the tests there, and of ``groupnorm compare``."""

TRITON = "triton"
"""The tests of the Triton backend."""

_SAME = ("kernels", "torch")

Entry = dict[str, Any]


class Results:
    """What was measured on one device.

    Args:
        path: the file.
        content: ``machine`` and the sections, entries by key.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.machine: Facts = content["machine"]
        self.sections: dict[str, dict[str, Entry]] = {name: content.get(name, {}) for name in SECTIONS}

    def __getitem__(self, section: str) -> dict[str, Entry]:
        return self.sections[section]

    def put(self, section: str, entries: dict[str, Entry]) -> None:
        """Keep entries, with the versions they were measured with; they are on the disk when this returns."""
        stamped = {key: entry | {"stamp": stamp(), "date": today()} for key, entry in entries.items()}
        self.sections[section].update(stamped)
        content = {"machine": self.machine, **self.sections}
        write_atomically(self.path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")

    def has(self, section: str, key: str, names: Iterable[str] = ()) -> bool:
        """Whether there is an entry of the same kernels and PyTorch, in which each of ``names`` has taken part."""
        entry = self.sections[section].get(key)
        if entry is None or not same(entry["stamp"], stamp()):
            return False
        return set(names) <= {*entry.get("errors", {}), *entry.get("out", {})}


def same(one: Facts, other: Facts) -> bool:
    """Whether two stamps are of the same kernels and PyTorch."""
    return all(one[part] == other[part] for part in _SAME)


def results(folder: Path, device: str, threads: int) -> Results:
    """The results of this machine so far.

    Raises:
        ArgumentError: there is no such device.
        RunFolderError: the file cannot be read.
    """
    facts = machine(device, threads)
    path = folder / f"{slug(facts)}.json"
    found = load(path) if path.exists() else Results(path, {"machine": facts})
    found.machine = facts
    return found


def load(path: Path) -> Results:
    """The results of a file.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
        return Results(path, {"machine": content["machine"], CASES: content[CASES], **content})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"cannot read {path}: {error}; expected a file that `groupnorm bench` wrote: remove it, or choose "
            f"another --out"
        ) from error


def load_all(folder: Path) -> list[Results]:
    """The results of all devices, CPUs first."""
    found = [load(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda results: results.machine["device"])
