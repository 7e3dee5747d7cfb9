"""A plugin of pytest that writes each test's outcome to a file as soon as it is known: a run that is cut loses none.

The file is ``$OUTCOMES``; its last line says that all tests have ended.
"""

import json
import os
from pathlib import Path
from typing import Any

ENDED = "ended"


def _tell(**line: Any) -> None:
    """Add a line; with pytest-xdist the process that leads hears of all tests, and tells them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    with Path(os.environ["OUTCOMES"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_runtest_logreport(report: Any) -> None:
    """A test is one line: of its call, or of the part before or after it that failed or was skipped."""
    if report.when == "call" or report.outcome != "passed":
        why = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr or "")
        _tell(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), why=why[-2000:])


def pytest_collectreport(report: Any) -> None:
    """A file that cannot be imported is a failure too."""
    if report.outcome == "failed":
        _tell(test=report.nodeid, outcome="failed", seconds=0.0, why=str(report.longrepr)[-2000:])


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """Neither after an interrupt nor after an error of pytest itself."""
    if exitstatus in (0, 1):
        _tell(outcome=ENDED)


def read(path: Path) -> dict[str, Any]:
    """What became of the tests in a file: how many ``passed``, which ``failed``, ``skipped`` by reason, and whether the
    ``whole`` of them ended.
    """
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:  # torn by a kill
            break
    skipped: dict[str, int] = {}
    for line in lines:
        if line["outcome"] == "skipped":
            reason = line["why"].removeprefix("Skipped: ")
            skipped[reason] = skipped.get(reason, 0) + 1
    return {
        "passed": sum(line["outcome"] == "passed" for line in lines),
        "failed": sorted({line["test"] for line in lines if line["outcome"] == "failed"}),
        "skipped": skipped,
        "whole": bool(lines) and lines[-1]["outcome"] == ENDED,
    }
