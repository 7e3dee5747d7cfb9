"""What every test shares: a seed, one thread, hypothesis without clocks, and Triton without a GPU."""

import os
from collections.abc import Iterator

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: its kernels run on CPU tensors

import pytest
import torch
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Each test draws the same numbers, whatever ran before it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small, and the cores may be shared
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
