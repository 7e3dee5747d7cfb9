"""A sweep in the process of the test: without the seconds that each worker process takes to start."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from groupnorm.lab.sweeps import runner
from groupnorm.lab.sweeps.local import bundles
from groupnorm.lab.sweeps.worker import run_bundle


def schedule(cells, run, how, workers=1):
    """As :func:`groupnorm.lab.sweeps.schedulers.schedule`: the bundles of so many workers, one after the other."""
    for bundle in bundles(cells, workers):
        events = []
        run_bundle(bundle, run, how.data_dir, partial(_tell, events))
        yield from ({"kind": "begin", "cell": cell.id} for cell in bundle)
        yield from events


def _tell(events, cell, record):
    events.append({"cell": cell, **record})


@contextmanager
def inline() -> Iterator[None]:
    """Within it, sweeps run here; torch is left as it was."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "schedule", schedule)
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
