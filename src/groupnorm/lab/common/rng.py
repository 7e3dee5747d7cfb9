"""All generators that a training may draw from: seeded together, saved together."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

EPOCHS = 1_000_003
"""More epochs than a training has: a seed times this plus the epoch is a number of this epoch alone."""


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_state(device: torch.device) -> dict[str, Any]:
    """The state of all generators, of tensors and plain values alone, so that it loads without unpickling objects."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_state(state: dict[str, Any], device: torch.device) -> None:
    """Put all generators back where :func:`get_state` found them."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def make_deterministic() -> None:
    """Let torch take the operations that give the same bits every time, where it has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import the compiler: a second
    memory: Any = torch.utils.deterministic
    memory.fill_uninitialized_memory = False  # it would be written twice, and nothing reads it in between
