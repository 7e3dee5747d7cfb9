"""The live table of a running sweep: errors so far, progress and the time that is left."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from groupnorm.lab.common.metric import ERROR, Metric
from groupnorm.lab.common.store import Record
from groupnorm.lab.common.trial import Cell

_MARKS = {"·": "no seed has ended", "…": "some seeds are still to come"}
_STYLES = {"undefined": "dim", "diverged": "red", "crashed": "bold red"}


class ProgressSink(Protocol):
    """Something that follows a sweep."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, event: dict[str, Any]) -> None:
        """Take in one event of the sweep."""


class NullProgress:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event of the sweep."""


class Progress:
    """What is known of a sweep while it runs: the status of each cell, and how long the rest will take.

    Whatever the number of cells, an event and a question cost the same.

    Args:
        cells: all cells of the sweep, by their ids.
        records: what is recorded of each, by the same ids.
        samples: number of training samples, by the digest of the data.
        workers: cells that train at the same time.
        metric: that is shown.
    """

    def __init__(
        self,
        cells: Mapping[str, Cell],
        records: Mapping[str, Sequence[Record]],
        samples: Mapping[str, int],
        workers: int,
        metric: Metric = ERROR,
    ) -> None:
        self.cells, self.workers, self.metric = cells, workers, metric
        self.status = dict.fromkeys(cells, "pending")
        self.values: dict[str, float] = {}  # of the metric
        self._counts = Counter(pending=len(cells))
        self._rates: dict[int, float] = {}  # seconds per pass through the network, by the images in it
        self._total = {i: samples[cell.data_digest] // cell.batch_size * cell.epochs for i, cell in cells.items()}
        self._left: dict[str, int] = {}  # steps of each cell
        self._passes_left: Counter[int] = Counter()  # of all cells, by the images in a pass
        for cell_id, total in self._total.items():
            self._set_left(cell_id, total)
        self._passes = sum(self._passes_left.values())
        for cell_id in cells:
            for record in records[cell_id]:
                if record.get("status") != "crashed":  # that is tried again
                    self.take({"cell": cell_id, **record})
        self.done_before = self.ended

    def take(self, event: dict[str, Any]) -> None:
        """Take in one event of the sweep."""
        cell_id = event["cell"]
        if event["kind"] == "begin":
            self._set_status(cell_id, "running")
        elif event["kind"] == "progress":
            self._set_left(cell_id, self._total[cell_id] - event["step"])
        elif event["kind"] == "epoch":
            self._set_left(cell_id, self._total[cell_id] - event["step"])
            self.values[cell_id] = event[self.metric.key]
            cell = self.cells[cell_id]
            steps = self._total[cell_id] // cell.epochs
            self._rates[cell.statistics_batch] = event["seconds"] / max(1, steps * _passes_of_a_step(cell))
        elif event["kind"] == "end":
            self._set_status(cell_id, event["status"])
            self._set_left(cell_id, 0)

    def count(self, *statuses: str) -> int:
        """Number of cells in one of these statuses."""
        return sum(self._counts[status] for status in statuses)

    @property
    def ended(self) -> int:
        """Number of cells that have ended, whatever their result."""
        return len(self.cells) - self.count("pending", "running")

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the speed of the epochs so far; None before the first."""
        if not self._rates:
            return None
        usual = fmean(self._rates.values())
        left = sum(passes * self._rates.get(images, usual) for images, passes in self._passes_left.items())
        return left / self.workers

    @property
    def fraction(self) -> float:
        """Share of all passes through the network that are done."""
        return 1 - sum(self._passes_left.values()) / self._passes if self._passes else 1.0

    def _set_status(self, cell_id: str, status: str) -> None:
        self._counts[self.status[cell_id]] -= 1
        self._counts[status] += 1
        self.status[cell_id] = status

    def _set_left(self, cell_id: str, steps: int) -> None:
        cell = self.cells[cell_id]
        passes = (steps - self._left.get(cell_id, 0)) * _passes_of_a_step(cell)
        self._passes_left[cell.statistics_batch] += passes
        self._left[cell_id] = steps


def _passes_of_a_step(cell: Cell) -> int:
    return cell.batch_size // cell.statistics_batch


class Display:
    """A live table on a terminal and in a notebook; elsewhere one line for each cell that ends.

    Args:
        progress: what is known of the sweep.
        folder: where its records lie.
        x: the quantity of the columns, "batch_size" or "normalization_batch".
        labels: what stands before a cell's norm, by the cell's id; None is nothing.
        console: where to draw; None is standard output.
    """

    def __init__(
        self,
        progress: Progress,
        folder: Path,
        x: str,
        labels: Mapping[str, str] | None = None,
        console: Console | None = None,
    ) -> None:
        self.progress, self.folder, self.x = progress, folder, x
        self.labels = labels or {}
        self._rows: dict[str, dict[int, list[str]]] = {}  # the cells of each row by column
        for cell_id, cell in progress.cells.items():
            self._rows.setdefault(self._row(cell_id, cell), {}).setdefault(self._column(cell), []).append(cell_id)
        self.console = console or Console(emoji=False)
        self.begin = time.monotonic()
        self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self.render)
        self._output: Any = None  # of the notebook's cell
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self.console.is_jupyter:
            from IPython.display import display

            self._output = display(self, display_id=True)  # type: ignore[no-untyped-call]
            return self
        already = self.progress.done_before
        before = f", of which {already} {'was' if already == 1 else 'were'} finished before" if already else ""
        start = f"{_cells(len(self.progress.cells))} in {self.folder}{before}."
        self.console.print(start, markup=False, highlight=False, soft_wrap=True)
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._output is not None:
            self._output.update(self)
        elif self.console.is_terminal:
            self._live.stop()
        else:
            self.console.print(self.table())

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event of the sweep."""
        self.progress.take(event)
        if self._output is not None:
            if time.monotonic() - self._drawn > 1 / 4:
                self._output.update(self)
                self._drawn = time.monotonic()
        elif event["kind"] == "end" and not self.console.is_terminal:
            cell_id, cell = event["cell"], self.progress.cells[event["cell"]]
            metric, result = self.progress.metric, event["status"]
            if result == "finished":
                result = f"{metric.text(self.progress.values[cell_id]):>6} {metric.name}"
            count = f"[{self.progress.ended:>3}/{len(self.progress.cells)}]"
            self.console.print(
                f"{count} {self._row(cell_id, cell):<6} batch size {cell.batch_size:<4} seed {cell.seed}: {result}"
                f"{_left(self.progress.seconds_left)}",
                markup=False,
                highlight=False,
            )
        if event["kind"] == "restart":
            self.console.print(
                f"{event['cell']} begins again, because its environment changed: {event['reason']}", markup=False
            )

    def render(self) -> Group:
        """The table and the line of progress below it."""
        progress = self.progress
        line = Table.grid(padding=(0, 1))
        elapsed = _duration(time.monotonic() - self.begin)
        line.add_row(
            ProgressBar(total=1.0, completed=progress.fraction, width=20),
            f"{progress.ended}/{len(progress.cells)} cells, {progress.count('running')} running, "
            f"{elapsed}{_left(progress.seconds_left)}",
        )
        return Group(self.table(), line)

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), emoji=False, record=True, force_jupyter=False, width=100)
        console.print(self.render())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def table(self) -> Group:
        """Mean of the seeds so far, for each norm and batch size."""
        columns = list(dict.fromkeys(self._column(cell) for cell in self.progress.cells.values()))
        table = Table()
        table.add_column("norm", style="bold")
        for column in columns:
            table.add_column(str(column), justify="right", min_width=6)
        shown = {row: [self._entry(found.get(column, [])) for column in columns] for row, found in self._rows.items()}
        for row, entries in shown.items():
            table.add_row(row, *entries)
        metric = self.progress.metric
        unit = f" ({metric.unit})" if metric.unit else ""
        title = Text(f"validation {metric.name}{unit} over {self.x.replace('_', ' ')}", style="bold")
        drawn = "".join(entry.plain for entries in shown.values() for entry in entries)
        legend = [f"{mark} {meaning}" for mark, meaning in _MARKS.items() if mark in drawn]
        return Group(title, table, *([Text(", ".join(legend), style="dim")] if legend else []))

    def _row(self, cell_id: str, cell: Cell) -> str:
        return f"{self.labels.get(cell_id, '')} {cell.norm}".lstrip()

    def _column(self, cell: Cell) -> int:
        return cell.batch_size if self.x == "batch_size" else cell.statistics_batch

    def _entry(self, cell_ids: list[str]) -> Text:
        statuses = [self.progress.status[cell_id] for cell_id in cell_ids]
        finished = [self.progress.values[i] for i, s in zip(cell_ids, statuses, strict=True) if s == "finished"]
        failed = [status for status in statuses if status in _STYLES]
        entry = Text(f"{fmean(finished):.1f}" if finished else "")
        if failed:
            entry.append(f"{' ' if finished else ''}{failed[0]}", style=_STYLES[failed[0]])
        if "running" in statuses or ("pending" in statuses and finished):
            entry.append(" …", style="cyan")
        return entry if entry.plain else Text("·", style="dim")


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _left(seconds: float | None) -> str:
    return "" if not seconds else f", about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
