"""Group normalization on GPUs, in Triton. Without one it runs in Triton's interpreter, slowly, for tests.

``plan`` decides how a call is cut up, ``forward_pass`` and ``backward_pass`` launch. The others are kernels:

    resident          groups in registers
    looped            a program for each group, which goes over it twice
    forward_blocks    three steps over blocks, as three kernels or one; backward_blocks likewise
    blocks            where a block lies;  order  who waits for whom;  activation  act and act'

Compiled kernels are specialised for: dtypes, and which tensors are given; layout; activation; the sides of tiles, which
are powers of two; and whether pointers and sizes are multiples of 16, and sizes 1. Not for shapes, nor for eps.
"""

from __future__ import annotations

import torch

from groupnorm.ops.spec import Spec
from groupnorm.ops.triton import measured
from groupnorm.ops.triton.backward_pass import backward
from groupnorm.ops.triton.blocks import INTERPRETED
from groupnorm.ops.triton.forward_pass import forward, statistics

__all__ = ["FEW_ELEMENTS", "INTERPRETED", "backward", "drawback", "forward", "refusal", "statistics"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_ACTIVATIONS = (None, "relu", "silu", "gelu", "gelu_tanh")
_ARCHITECTURE = 80
_COUNTED = 2**31

FEW_ELEMENTS = 1 << 13


def refusal(spec: Spec) -> str:
    """Why this backend cannot do what is asked, and what would help; "" where it can."""
    if spec.dtype not in _DTYPES:
        return f"it has no kernel for {spec.dtype}: use float32, bfloat16, float16 or float64"
    if spec.activation not in _ACTIVATIONS:
        return f"it has no kernel for the activation {spec.activation!r}: apply it to the output"
    if max(spec.positions, spec.samples * spec.channels) >= _COUNTED:
        return f"it counts positions, and channels of all samples, up to 2**31 - 1; the input is {spec.shape}: split it"
    if spec.device != "cuda" and not (INTERPRETED and spec.device == "cpu"):
        return f"the input is on {spec.device}: move it with x.cuda()"
    return "" if INTERPRETED else _wrong_with(spec.gpu)


def drawback(spec: Spec) -> str:
    """Why another backend is faster, or has to be taken for faster; "" where none is."""
    if INTERPRETED:
        return "it runs in Triton's interpreter, which is for tests: unset TRITON_INTERPRET"
    return measured.drawback(spec)


def _wrong_with(gpu: str | None) -> str:
    """What is wrong with a GPU of this architecture; "" where nothing is."""
    if gpu is None:
        return "torch sees no GPU: see torch.cuda.is_available()"
    number = gpu.removeprefix("sm_")
    if number.isdecimal() and int(number) < _ARCHITECTURE:
        return f"the GPU is of architecture {gpu}, and Triton needs sm_{_ARCHITECTURE}: use backend='native'"
    return ""
