"""Convert every network of the matrix, two at a time, and write docs/zoo.jsonl and docs/zoo.md.

What is measured is kept in runs/zoo: the same command goes on where an interrupted one stopped, unless the code or a
library has changed since.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from measure import measure, prepare  # first: it lets the tests be imported
from page import render
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# isort: split
from conversion.zoo.networks import LEFT_OUT, NETWORKS
from conversion.zoo.records import PAGE, RECORDS, ROOT, environment
from groupnorm.environment import cores
from groupnorm.files import write_atomically
from groupnorm.lab.common.store import CellFolder, Record

SOURCES = [*(ROOT / "src" / "groupnorm").rglob("*.py"), *(ROOT / "tests" / "conversion" / "zoo").glob("*.py")]


def main() -> int:
    """Measure what is not measured yet, then write the page."""
    console = Console()
    folder = CellFolder(ROOT / "runs" / "zoo")
    first = environment()
    stamp = {**first, "sources": digest()}
    if folder.records()[:1] != [stamp]:
        folder.keep(0)
        folder.append(stamp)
    try:
        failed = measure_rest(folder, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the same command goes on from there.")
        return 130
    if failed:
        console.print(
            f"{failed} of {len(NETWORKS)} networks are not converted as promised, and the page stays as it is. Each is "
            f"a test: {sys.executable} -m pytest tests/conversion/zoo -k NAME"
        )
        return 1
    rows = measured(folder)
    ordered = [{k: v for k, v in rows[n.key].items() if k not in ("kind", "key")} for n in NETWORKS]
    write_atomically(RECORDS, "".join(json.dumps(line) + "\n" for line in (first, *ordered)).encode())
    write_atomically(PAGE, render(first, ordered, LEFT_OUT).encode())
    folder.keep(0)
    console.print(f"{len(ordered)} networks: {PAGE.relative_to(ROOT)}, {RECORDS.relative_to(ROOT)}")
    return 0


def measure_rest(folder: CellFolder, console: Console) -> int:
    """Measure the networks without a record, which get one; how many fail."""
    rows, failed = measured(folder), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    spawn = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(min(2, cores()), spawn, initializer=prepare) as pool,
    ):
        task = progress.add_task("networks converted", total=len(NETWORKS), completed=len(rows))
        waiting = {pool.submit(measure, number): n.key for number, n in enumerate(NETWORKS) if n.key not in rows}
        try:
            for future in as_completed(list(waiting)):
                key = waiting.pop(future)
                try:
                    folder.append(future.result())
                except BrokenProcessPool:
                    raise
                except Exception as error:  # of any library; the other networks are measured nevertheless
                    failed += 1
                    progress.print(f"[red]{escape(key)}[/]: {type(error).__name__}: {escape(str(error))}")
                progress.advance(task)
        finally:  # after an interrupt those that run are waited for, and kept
            pool.shutdown(cancel_futures=True)
            for future in waiting:
                if not future.cancelled() and future.exception() is None:
                    folder.append(future.result())
    return failed


def measured(folder: CellFolder) -> dict[str, Record]:
    """The records so far, by network."""
    return {row["key"]: row for row in folder.records()[1:]}


def digest() -> str:
    """Of the code that the records depend on."""
    found = hashlib.sha256()
    for path in sorted(SOURCES):
        found.update(path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
