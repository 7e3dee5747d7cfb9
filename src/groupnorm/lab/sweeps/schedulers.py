"""Where cells are trained: on this machine, on a Ray cluster, or by Slurm. Each is a generator of the same events."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.sweeps.configuration import Comparison
from groupnorm.lab.sweeps.local import Event, sweep


def schedule(cells: Sequence[Cell], run: RunFolder, how: Comparison) -> Generator[Event, None, None]:
    """Train the cells where the configuration says, and yield events as they happen.

    Args:
        cells: what to train, in this order.
        run: where the records go.
        how: its scheduler, workers, data_dir, address and slurm.
    """
    if how.scheduler == "ray":
        from groupnorm.lab.sweeps import ray

        return ray.sweep(cells, run, how.workers, how.data_dir, how.address)
    if how.scheduler == "slurm":
        from groupnorm.lab.sweeps import slurm

        return slurm.sweep(cells, run, how.workers, how.data_dir, how.slurm)
    return sweep(cells, run, how.worker_count or 1, how.data_dir)
