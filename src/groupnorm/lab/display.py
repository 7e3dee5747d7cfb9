"""The live table of a running sweep: errors so far, progress and the time that is left."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from groupnorm.lab.cell import Cell
from groupnorm.lab.records import RunFolder

_STYLES = {"undefined": "dim", "diverged": "red", "crashed": "bold red"}


class Shows(Protocol):
    """Something that follows a sweep."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, event: dict[str, Any]) -> None:
        """Take in one event of the sweep."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event of the sweep."""


class Progress:
    """What is known of a sweep while it runs: the status of each cell, and how long the rest will take.

    Args:
        cells: all cells of the sweep.
        run: their records so far.
        images: number of training images, by the digest of the data.
        workers: cells that train at the same time.
    """

    def __init__(self, cells: Sequence[Cell], run: RunFolder, images: Mapping[str, int], workers: int) -> None:
        self.cells = {cell.id: cell for cell in cells}
        self.images, self.workers = images, workers
        self.status = dict.fromkeys(self.cells, "pending")
        self.steps = dict.fromkeys(self.cells, 0)
        self.error: dict[str, float] = {}
        self._rates: dict[int, float] = {}  # seconds per pass through the network, by the images in it
        for cell in cells:
            for record in run.cell(cell.id).records():
                self.take({"cell": cell.id, **record})
            if self.status[cell.id] == "crashed":
                self.status[cell.id] = "pending"
        self.done_before = sum(status not in ("pending", "running") for status in self.status.values())

    def take(self, event: dict[str, Any]) -> None:
        """Take in one event of the sweep."""
        cell_id = event["cell"]
        if event["kind"] == "begin":
            self.status[cell_id] = "running"
        elif event["kind"] == "progress":
            self.steps[cell_id] = event["step"]
        elif event["kind"] == "epoch":
            self.steps[cell_id] = event["step"]
            self.error[cell_id] = event["error"]
            passes = self._passes(self.cells[cell_id]) / self.cells[cell_id].epochs
            self._rates[self.cells[cell_id].statistics_batch] = event["seconds"] / passes
        elif event["kind"] == "end":
            self.status[cell_id] = event["status"]

    def count(self, *statuses: str) -> int:
        """Number of cells in one of these statuses."""
        return sum(status in statuses for status in self.status.values())

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the speed of the epochs so far; None before the first."""
        if not self._rates:
            return None
        usual = fmean(self._rates.values())
        left = 0.0
        for cell_id, cell in self.cells.items():
            if self.status[cell_id] in ("pending", "running"):
                total = self._total_steps(cell)
                share = 1 - self.steps[cell_id] / total if total else 0.0
                left += share * self._passes(cell) * self._rates.get(cell.statistics_batch, usual)
        return left / self.workers

    @property
    def fraction(self) -> float:
        """Share of all passes through the network that are done."""
        total = done = 0.0
        for cell_id, cell in self.cells.items():
            passes = self._passes(cell)
            total += passes
            ended = self.status[cell_id] not in ("pending", "running")
            done += passes if ended else passes * self.steps[cell_id] / max(1, self._total_steps(cell))
        return done / total if total else 1.0

    def _total_steps(self, cell: Cell) -> int:
        return self.images[cell.data_digest] // cell.batch_size * cell.epochs

    def _passes(self, cell: Cell) -> float:
        return self._total_steps(cell) * cell.batch_size / cell.statistics_batch


class Display:
    """A live table on a terminal and in a notebook; elsewhere one line for each cell that ends.

    Args:
        progress: what is known of the sweep.
        x: the quantity of the columns, "batch_size" or "normalization_batch".
        labels: what stands before a cell's norm, by the cell's id; None is nothing.
        console: where to draw; None is standard output.
    """

    def __init__(
        self,
        progress: Progress,
        x: str,
        labels: Mapping[str, str] | None = None,
        console: Console | None = None,
    ) -> None:
        self.progress, self.x = progress, x
        self.labels = labels or {}
        self.console = console or Console()
        self.begin = time.monotonic()
        self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self.render)
        self._output: Any = None  # of the notebook's cell
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if already := self.progress.done_before:
            self.console.print(f"{already} of {len(self.progress.cells)} cells were finished before.")
        if self.console.is_jupyter:
            from IPython.display import display

            self._output = display(self, display_id=True)  # type: ignore[no-untyped-call]
        elif self.console.is_terminal:
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
            cell = self.progress.cells[event["cell"]]
            ended = len(self.progress.cells) - self.progress.count("pending", "running")
            result = f"{self.progress.error[cell.id]:5.1f}% error" if event["status"] == "finished" else event["status"]
            self.console.print(
                f"[{ended:>3}/{len(self.progress.cells)}] {self._row(cell):<6} batch size {cell.batch_size:<4} "
                f"seed {cell.seed}: {result}{_left(self.progress.seconds_left)}",
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
        ended = len(progress.cells) - progress.count("pending", "running")
        line.add_row(
            ProgressBar(total=1.0, completed=progress.fraction, width=20),
            f"{ended}/{len(progress.cells)} cells, {progress.count('running')} running, "
            f"{elapsed}{_left(progress.seconds_left)}",
        )
        return Group(self.table(), line)

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), record=True, force_jupyter=False, width=100)
        console.print(self.render())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def table(self) -> Group:
        """Mean validation error of the seeds so far, for each norm and batch size."""
        progress = self.progress
        columns = list(dict.fromkeys(self._column(cell) for cell in progress.cells.values()))
        table = Table()
        table.add_column("norm", style="bold")
        for column in columns:
            table.add_column(str(column), justify="right", min_width=6)
        for row in dict.fromkeys(self._row(cell) for cell in progress.cells.values()):
            entries = []
            for column in columns:
                here = [c.id for c in progress.cells.values() if self._row(c) == row and self._column(c) == column]
                entries.append(self._entry(here))
            table.add_row(row, *entries)
        return Group(Text(f"validation error (%) over {self.x.replace('_', ' ')}", style="bold"), table)

    def _row(self, cell: Cell) -> str:
        return f"{self.labels.get(cell.id, '')} {cell.norm}".lstrip()

    def _column(self, cell: Cell) -> int:
        return cell.batch_size if self.x == "batch_size" else cell.statistics_batch

    def _entry(self, cell_ids: list[str]) -> Text:
        statuses = [self.progress.status[cell_id] for cell_id in cell_ids]
        finished = [self.progress.error[i] for i, s in zip(cell_ids, statuses, strict=True) if s == "finished"]
        failed = [status for status in statuses if status in _STYLES]
        entry = Text(f"{fmean(finished):.1f}" if finished else "")
        if failed:
            entry.append(f"{' ' if finished else ''}{failed[0]}", style=_STYLES[failed[0]])
        if "running" in statuses or ("pending" in statuses and finished):
            entry.append(" …", style="cyan")
        return entry if entry.plain else Text("·", style="dim")


def _left(seconds: float | None) -> str:
    return "" if not seconds else f", about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
