"""A sweep in the process of the test: without the seconds that each worker process takes to start."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from groupnorm.lab import conduct
from groupnorm.lab.sweep import bundles
from groupnorm.lab.worker import run_bundle


def schedule(cells, run, how):
    """As :func:`groupnorm.lab.schedulers.schedule`, one bundle of cells after the other."""
    for bundle in bundles(cells, 1):
        events = []
        run_bundle(bundle, run, how.data_dir, lambda cell, record: events.append({"cell": cell, **record}))  # noqa: B023
        yield from ({"kind": "begin", "cell": cell.id} for cell in bundle)
        yield from events


@contextmanager
def inline() -> Iterator[None]:
    """Within it, sweeps run here; torch is left as it was."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conduct, "schedule", schedule)
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
