"""The main job: train the same network with each norm over batch sizes, and show who survives."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groupnorm.errors import GroupNormError
from groupnorm.lab import tasks
from groupnorm.lab.analysis.results import Results
from groupnorm.lab.common.metric import ERROR
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.sweeps.configuration import Comparison, plan
from groupnorm.lab.sweeps.local import WORKER
from groupnorm.lab.sweeps.runner import run_trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_planning: list[bool] = []  # not empty while modules of the user's are imported


class Result(Results):
    """The records of a run folder, as tables, figures and a report.

    Attributes:
        folder: where the records lie.
        request: what was asked for: ``command``, ``config``, ``cells``.
        cells: the cells asked for, in the order of the request.
    """

    def plot(self) -> Figure:
        """Figure 1 of the paper: validation error over batch size, mean and 95% interval over seeds."""
        from groupnorm.lab.plots.figures import error_over_batch_size

        return error_over_batch_size(self)

    def report(self) -> Path:
        """Write report.html, the figures and table.csv into the run folder and return the report's path."""
        from groupnorm.lab.report import write_report

        return write_report(self, self._run)


def compare(*, out: Path | str | None = None, progress: bool = True, **options: Any) -> Result:
    """Train every norm at every batch size with every seed, in parallel, and return what was found.

    Everything is recorded in a folder as it happens. The same call goes on where an interrupted one stopped, and
    repeats nothing that is finished.

    Args:
        out: the run's folder. Default: ``runs/DATASET-MODEL`` below the current folder.
        progress: show a live table.
        **options: the configuration; see :class:`groupnorm.lab.Comparison` for each option and its
            default: ``dataset``, ``model``, ``norms``, ``batch_sizes``, ``seeds``, ``epochs``, ...

    Returns:
        The result, with ``.table``, ``.plot()`` and ``.report()``.

    Raises:
        ConfigurationError: lists every problem of the configuration, before anything trains.
        RunFolderError: another process is writing to the folder.

    Example::

        >>> result = groupnorm.lab.compare(norms=["bn", "gn"], batch_sizes=[32, 2])
        >>> result.table.groupby(["norm", "batch_size"]).error.mean()
    """
    if os.environ.get(WORKER) or _planning:
        raise GroupNormError(
            "compare() was called while your module was being imported for another compare(); expected a module that "
            "only defines things: put the call under `if __name__ == '__main__':`, or the network into its own file"
        )
    _planning.append(True)
    try:
        comparison, dataset = plan(**options)
    finally:
        _planning.clear()
    run = RunFolder(out if out is not None else default_folder(comparison))
    with run.lock():
        return _run(comparison, dataset, run, progress)


def _signature() -> inspect.Signature:
    """The options by name, which notebooks complete and ``help`` shows."""
    own = list(inspect.signature(compare).parameters.values())[:-1]
    named = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for name, field in Comparison.model_fields.items()
    ]
    return inspect.Signature([*own, *named], return_annotation=Result)


compare.__signature__ = _signature()  # type: ignore[attr-defined]


def default_folder(comparison: Comparison) -> Path:
    """``runs/DATASET-MODEL``, with names reduced to their last part."""
    names = (comparison.dataset, comparison.model)
    return Path("runs") / "-".join(re.split(r"[/\\:]", name.rstrip("/\\"))[-1] for name in names)


def _run(comparison: Comparison, dataset: tasks.Data, run: RunFolder, progress: bool) -> Result:
    task = tasks.find(comparison.task)
    request = {
        "command": shlex.join(comparison.command(run.path)),
        "config": comparison.model_dump(mode="json"),
        "dataset": {
            "name": dataset.name,
            "note": dataset.note,
            "train": len(dataset.train_targets),
            "val": len(dataset.val_targets),
            **({"classes": dataset.outputs} if task.metric == ERROR else {}),
        },
        "task": task.record.as_json() | {"chance": task.chance(dataset)},
    }
    run_trials(
        comparison.cells(dataset.digest, comparison.model_digests(dataset)),
        request,
        run,
        samples={dataset.digest: len(dataset.train_targets)},
        how=comparison,
        progress=progress,
    )
    return Result(run.path)


def load(folder: Path | str) -> Result:
    """The result of a finished or unfinished run.

    Args:
        folder: the ``--out`` of ``groupnorm compare``.

    Raises:
        RunFolderError: the folder holds no run, or records that this version does not read.
    """
    return Result(folder)
