"""Experiments: train the same network with each norm, and show who survives (``pip install groupnorm[lab]``)."""

from groupnorm.files import RunFolderError
from groupnorm.lab.compare import compare
from groupnorm.lab.comparison import Comparison, ConfigurationError
from groupnorm.lab.result import Result, load

__all__ = ["Comparison", "ConfigurationError", "Result", "RunFolderError", "compare", "load"]
