"""Which GPU a device is, as far as the choice of a backend goes."""

from __future__ import annotations

import functools

import torch


def architecture(device: torch.device) -> str | None:
    """The architecture of a GPU, such as "sm_90" of an H100 or H200; None of other devices, and where torch sees none.

    Kernels that are fast on one GPU of an architecture are fast on its sisters: they have the same multiprocessors.
    """
    if device.type != "cuda":
        return None
    return _architecture(device.index)


@functools.cache
def _architecture(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return None
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(index).gcnArchName).partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(index))
