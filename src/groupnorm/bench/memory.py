"""Memory that is new each time or kept by the allocator, how much there is, and the peak of a step.

With glibc a tensor above 32 MB is new memory in each call, whose page faults cost as much as two or three copies of it.
That is what users get, and what speed-ups are judged by. What a kernel can do is seen in memory that is there: in a
process whose allocator keeps what is freed, since in one that changes its ways some tensors would be new and some not.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import platform
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}  # of mallopt(3)


def can_keep() -> bool:
    """Whether the allocator is known, and can be told to keep memory."""
    return platform.libc_ver()[0] == "glibc"


def in_kept_memory(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns in another process, in which memory that is freed is not given back.

    There a tensor has page faults the first time only. The process has as many threads as this one.
    """
    with _environment(_KEEPING):  # read when the process starts
        future = _process(torch.get_num_threads()).submit(function, *args, **kwargs)
    return future.result()


def release() -> None:
    """Give what is free back to the system."""
    gc.collect()
    if can_keep():
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def available(device: str) -> int | None:
    """Bytes that can be had; None where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        return _field("/proc/meminfo", "MemAvailable")
    except OSError:
        return None


def peak_of(step: Callable[[], object], device: str) -> int | None:
    """Bytes that a step takes at its peak beyond what was held before it; None where the system does not say.

    On a CPU that is resident memory as the system counts it: in a process of its own that has run the step before, so
    that libraries and threads are there. On a GPU it is what PyTorch's allocator gave out.
    """
    release()
    if device == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()) - held
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        held = _field("/proc/self/status", "VmRSS")
        step()
        return max(_field("/proc/self/status", "VmHWM") - held, 0)
    except OSError:
        return None


@cache
def _process(threads: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=_prepare, initargs=(threads,))


def _prepare(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt is told by the parent
    torch.set_num_threads(threads)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _field(path: str, name: str) -> int:
    """A number of kilobytes in a file of the system, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}")
