"""Experiments: train the same network with each norm, and show who survives (``pip install groupnorm[lab]``)."""

from groupnorm.files import RunFolderError
from groupnorm.lab.api import Result, compare, load
from groupnorm.lab.sweeps.configuration import Comparison, ConfigurationError

__all__ = ["Comparison", "ConfigurationError", "Result", "RunFolderError", "compare", "load"]
