"""The idx file format: a big-endian header of sizes, then bytes. Source: https://yann.lecun.org/exdb/mnist/."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from groupnorm.lab.data.errors import DataError


def read_idx(path: Path) -> Tensor:
    """The uint8 array in a gzip-compressed idx file.

    Raises:
        DataError: the file is damaged, cut short, or not an idx file of bytes. Names the file.
    """
    try:
        data = bytearray(gzip.decompress(path.read_bytes()))
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a gzip-compressed idx file: replace it") from error
    start, size = 4 + 4 * rank, math.prod(shape)
    if zeros != 0 or kind != 8 or not size or len(data) != start + size:
        raise DataError(
            f"{path} holds {len(data)} bytes, type {kind:#04x} and sizes {shape}; expected an idx file of unsigned "
            f"bytes (type 0x08) whose length is that of its header and sizes: replace it"
        )
    return torch.frombuffer(data, dtype=torch.uint8, offset=start).view(shape)
