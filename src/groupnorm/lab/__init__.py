"""Experiments: train the same network with each norm, and show who survives (``pip install groupnorm[lab]``)."""

from groupnorm.lab.compare import compare
from groupnorm.lab.result import Result, load

__all__ = ["Result", "compare", "load"]
