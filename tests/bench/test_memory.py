"""Memory that stays, and the peak of a step."""

import os

import pytest
import torch

from bench.synthetic import faults
from groupnorm.bench import memory


@pytest.mark.skipif(not memory.can_keep(), reason="another C library")
def test_the_process_that_keeps_memory_has_page_faults_once():
    first, *_, last = memory.in_kept_memory(faults, 5)
    assert last < 100 < first
    assert not memory._KEEPING.keys() & os.environ.keys(), "other processes are as they were"
    assert memory.in_kept_memory(torch.get_num_threads) == torch.get_num_threads()


@pytest.mark.skipif(memory.available("cpu") is None, reason="the system does not tell")
def test_the_peak_is_that_of_the_step():
    held = torch.ones(4096, 4096)
    peak = memory.peak_of(lambda: held + 1, "cpu")
    assert peak is None or peak == pytest.approx(held.nbytes, rel=0.2)
    assert memory.available("cpu") > 0
