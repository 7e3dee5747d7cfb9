"""What a process of the command does: convert one network after another, as the tests do."""

import signal
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # the matrix and its check are those of the tests

from conversion.zoo.networks import NETWORKS


def prepare() -> None:
    """One thread in each process, as in the tests, and no warnings of the libraries; an interrupt is for the parent."""
    import torch
    from torch import nn

    import groupnorm

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    groupnorm.convert_(small, sample_input=torch.randn(1, 3, 8, 8))  # so that no network bears the first call


def measure(number: int) -> dict[str, Any]:
    """The record of one network."""
    from conversion.zoo.check import check

    network = NETWORKS[number]
    names = {"kind": "network", "key": network.key, "library": network.library, "name": network.name}
    return names | check(network)
