"""Memory that stays, and the peak of a step."""

import pytest
import torch

from groupnorm.lab.bench import memory
from lab.bench.synthetic import faults


@pytest.mark.skipif(not memory.can_keep(), reason="another C library")
def test_memory_is_new_each_time_but_in_the_process_that_keeps_it():
    assert memory.in_kept_memory(faults, 5)[-1] < 100
    assert min(faults(5)) > 100, "this process is as it was"
    assert memory.in_kept_memory(torch.get_num_threads) == torch.get_num_threads()


@pytest.mark.skipif(memory.available("cpu") is None, reason="the system does not tell")
def test_the_peak_is_that_of_the_step():
    held = torch.ones(4096, 4096)
    peak = memory.peak_of(lambda: held + 1, "cpu")
    assert peak is None or peak == pytest.approx(held.nbytes, rel=0.2)
    assert memory.available("cpu") > 0
