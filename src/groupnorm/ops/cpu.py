"""Kernels for the CPU: C++ of ``csrc``, called through ctypes, with the threads that PyTorch uses.

The libraries are built when the package is installed, one for each instruction set; where they could not be,
:func:`unavailable` says so and the package does without.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, empty_like, get_num_threads

from groupnorm.errors import OutOfMemoryError
from groupnorm.ops.checks import address
from groupnorm.ops.spec import CHANNELS_LAST, Spec

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_ACTIVATIONS = {None: 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4}
Statistics = tuple[Tensor, Tensor]

FEW_ELEMENTS = 1 << 13
"""Of a sample: a compiled graph computes smaller ones itself, fused with what is around them."""


class _Problem(ctypes.Structure):
    """Laid out as ``Problem`` of csrc/problem.h."""

    _fields_ = (
        *((field, ctypes.c_int64) for field in ("samples", "channels", "positions", "groups")),
        *((field, ctypes.c_int32) for field in ("dtype", "channels_last", "activation", "threads")),
    )


@functools.cache
def unavailable() -> str:
    """Why there are no kernels for this machine; "" where there are."""
    if instruction_set() is None:
        capability = torch.backends.cpu.get_cpu_capability()
        return f"this processor's instruction set is {capability}; the kernels are written for AVX2 and AVX-512"
    if _library_path() is None:
        return (
            "the kernels were not built: no working C++ compiler (GCC or Clang) was found when the package was "
            "installed; install one, then the package again"
        )
    return ""


def refusal(spec: Spec) -> str:
    """Why this backend cannot do what is asked; "" where it can."""
    if spec.device != "cpu":
        return f"the input is on {spec.device}"
    if spec.dtype not in _DTYPES:
        return f"it has no kernel for {spec.dtype}"
    return unavailable()


def drawback(spec: Spec) -> str:
    """Why another backend is faster; "" always.

    ATen's is, for a few thousand elements: by the microseconds of a call from Python. But a choice by size would have
    to go by the size of one sample, or a sample would not have the same bits in every batch; and ATen's channels-last
    kernel cancels, its activations round otherwise at the end of a tensor, and it keeps half precision statistics.
    """
    return ""


def forward(
    spec: Spec,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    statistics: Statistics | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The protocol of :mod:`groupnorm.ops.backends`."""
    problem, dtype, shape = _problem(spec, get_num_threads())
    y = empty_like(x) if out is None else out
    mean, rstd = statistics or (None, None)
    if mean is None and spec.needs_grad:
        mean, rstd = x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
    weight, bias = _parameter(weight, dtype), _parameter(bias, dtype)
    failed = _library().groupnorm_forward(
        problem,
        _address(x),
        _address(residual),
        _address(total),
        _address(weight),
        _address(bias),
        _address(mean),
        _address(rstd),
        _address(y),
        eps,
        statistics is not None,
    )
    if failed:
        raise _out_of_memory(spec)
    return y, mean, rstd


def statistics(spec: Spec, x: Tensor, eps: float) -> Statistics:
    """The protocol of :mod:`groupnorm.ops.backends`."""
    problem, dtype, shape = _problem(spec, get_num_threads())
    mean, rstd = x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
    failed = _library().groupnorm_forward(
        problem, _address(x), None, None, None, None, _address(mean), _address(rstd), None, eps, False
    )
    if failed:
        raise _out_of_memory(spec)
    return mean, rstd


def backward(
    spec: Spec,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    fixed: bool = False,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The protocol of :mod:`groupnorm.ops.backends`."""
    problem, dtype, shape = _problem(spec, get_num_threads())
    dx = empty_like(x) if needs[0] else None
    dweight = x.new_empty(spec.channels, dtype=dtype) if needs[1] else None
    dbias = x.new_empty(spec.channels, dtype=dtype) if needs[2] else None
    sums = x.new_empty((2, *shape), dtype=dtype) if fixed else None
    weight, bias = _parameter(weight, dtype), _parameter(bias, dtype)
    failed = _library().groupnorm_backward(
        problem,
        _address(dy),
        _address(x),
        _address(weight),
        _address(bias),
        _address(mean),
        _address(rstd),
        _address(dx),
        _address(dweight),
        _address(dbias),
        _address(sums),
        fixed,
    )
    if failed:
        raise _out_of_memory(spec)
    return dx, dweight, dbias, sums


def _address(t: Tensor | None) -> int | None:
    """Where a tensor's elements are; the kernels take a null pointer for one that was not given."""
    return None if t is None else address(t)


def _out_of_memory(spec: Spec) -> OutOfMemoryError:
    megabytes = spec.elements * spec.dtype.itemsize / 1e6
    return OutOfMemoryError(
        f"group norm of an input {spec.shape} ran out of memory; expected up to {megabytes:.1f} MB, the size of the "
        f"input, for temporaries: use a smaller batch"
    )


def _parameter(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A scale or shift as the kernels read it."""
    if parameter is None or (parameter.dtype is dtype and parameter.is_contiguous()):
        return parameter
    return parameter.to(dtype).contiguous()


@functools.lru_cache(maxsize=4096)
def _problem(spec: Spec, threads: int) -> tuple[Any, torch.dtype, tuple[int, int]]:
    """A pointer to what the kernels are told, and dtype and shape of the statistics."""
    problem = _Problem(
        spec.samples,
        spec.channels,
        spec.positions,
        spec.groups,
        _DTYPES[spec.dtype],
        spec.layout == CHANNELS_LAST,
        _ACTIVATIONS[spec.activation],
        threads,
    )
    return ctypes.byref(problem), spec.accumulates, (spec.samples, spec.groups)


def instruction_set() -> str | None:
    """The instructions that the kernels would use here, by the name of their library; None where there are none.

    No more than PyTorch uses, so that ``ATEN_CPU_CAPABILITY`` holds for both.
    """
    match torch.backends.cpu.get_cpu_capability():
        case "AVX512":
            return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
        case "AVX2":
            return "avx2"
        case _:
            return None


def _library_path() -> Path | None:
    # An editable installation has the libraries elsewhere than the sources; the package knows both places.
    folders = sys.modules["groupnorm.ops"].__path__
    paths = (Path(folder) / f"libgroupnorm_{instruction_set()}.so" for folder in folders)
    return next((path for path in paths if path.exists()), None)


@functools.cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    assert path is not None, unavailable()
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    arguments: dict[str, list[Any]] = {
        "groupnorm_forward": [*[pointer] * 9, ctypes.c_double, ctypes.c_int],
        "groupnorm_backward": [*[pointer] * 11, ctypes.c_int],
        "groupnorm_use_threads": [pointer, pointer],
    }
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, ctypes.c_int
    library.groupnorm_use_threads(*_threads_of_torch())
    return library


def _threads_of_torch() -> tuple[int | None, int | None]:
    """Addresses of ``GOMP_parallel`` and ``omp_get_thread_num`` in PyTorch's OpenMP runtime; None where it has another.

    A second runtime would have threads of its own, which compete with the waiting threads of the first.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        torchs = ctypes.CDLL(str(path))
        fork, number = (
            ctypes.cast(function, ctypes.c_void_p).value
            for function in (torchs.GOMP_parallel, torchs.omp_get_thread_num)
        )
    except (OSError, AttributeError):
        return None, None
    return fork, number
