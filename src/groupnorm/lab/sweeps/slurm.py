"""A sweep as a Slurm job array, through submitit. The run folder has to lie where all nodes see it.

https://github.com/facebookincubator/submitit
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from groupnorm.errors import GroupNormError
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.text import readable
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.sweeps.local import Event, bundles, status
from groupnorm.lab.sweeps.worker import run_bundle

_POLL_SECONDS = 2.0
_DEFAULTS = {"timeout_min": 24 * 60}


def sweep(
    cells: Sequence[Cell],
    run: RunFolder,
    workers: int | None,
    data_dir: Path | None,
    parameters: dict[str, str],
    cluster: str = "slurm",
) -> Generator[Event, None, None]:
    """Submit an array with one job for each bundle of cells, and yield events as their records appear.

    Closing the generator, or an exception in its consumer, cancels the jobs; what they recorded stays.

    Args:
        cells: what to train.
        run: where the records go, on a file system that all nodes share.
        workers: jobs that run at the same time; None is no limit.
        data_dir: where the datasets lie on the nodes.
        parameters: of ``submitit.AutoExecutor.update_parameters``, such as ``slurm_partition``.
        cluster: "slurm", or "local" for processes of this machine.

    Raises:
        GroupNormError: there is no Slurm here, or it refuses a parameter.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=run.path / "slurm", cluster=cluster)
        first = cells[0]
        shape: dict[str, Any] = {
            "cpus_per_task": first.threads * first.processes,
            "gpus_per_node": first.processes * (first.device == "cuda"),
        }
        array = {"slurm_array_parallelism": workers} if workers and cluster == "slurm" else {}
        given = {name: _number(value) for name, value in parameters.items()}
        executor.update_parameters(**(_DEFAULTS | shape | array | given))
        with executor.batch():
            jobs = {
                executor.submit(
                    train, [cell.model_dump() for cell in bundle], str(run.path.absolute()), data_dir
                ): bundle
                for bundle in bundles(cells, workers or len(cells))
            }
    except (RuntimeError, NameError, TypeError) as error:
        raise GroupNormError(
            f"the jobs cannot be submitted: {error}; expected a machine with sbatch, and parameters of submitit "
            f"such as slurm_partition=gpu"
        ) from error
    seen = dict.fromkeys((cell.id for cell in cells), 0)
    begun: set[str] = set()
    try:
        while jobs:
            done = [job for job in jobs if job.done()]  # before the records are read, or the last would be missed
            for bundle in jobs.values():
                for cell in bundle:
                    yield from _news(cell, run, seen, begun)
            for job in done:
                yield from _missing(jobs.pop(job), run, job)
            time.sleep(_POLL_SECONDS if jobs else 0)
    finally:
        for job in jobs:
            job.cancel()


def train(fields: list[dict[str, Any]], folder: str, data_dir: Path | None) -> None:
    """What a job does: train a bundle of cells in the shared run folder."""
    cells = [Cell(**one) for one in fields]
    run_bundle(cells, RunFolder(folder), data_dir, lambda cell_id, record: None)


def _news(cell: Cell, run: RunFolder, seen: dict[str, int], begun: set[str]) -> Generator[Event, None, None]:
    """The records of a cell that have appeared since the last look."""
    records = run.cell(cell.id).records()
    if records and cell.id not in begun:
        begun.add(cell.id)
        yield {"kind": "begin", "cell": cell.id}
    for record in records[seen[cell.id] :]:
        if record["kind"] in ("epoch", "end"):
            yield {"cell": cell.id, **record}
    seen[cell.id] = len(records)


def _missing(bundle: Sequence[Cell], run: RunFolder, job: Any) -> Generator[Event, None, None]:
    """A job that ended without the end of a cell has crashed."""
    for cell in bundle:
        if status(run.cell(cell.id).records()) == "pending":
            reason = readable(f"job {job.job_id} ended in state {job.state}; see {job.paths.stderr}")
            end = {"kind": "end", "status": "crashed", "reason": reason}
            run.cell(cell.id).append(end)
            yield {"cell": cell.id, **end}


def _number(text: str) -> str | int:
    return int(text) if text.isdigit() else text
