"""Group Normalization for PyTorch, complete: a drop-in layer, and the evidence of when to use it.

The core imports torch alone. The experiments live in :mod:`groupnorm.lab` (``pip install groupnorm[lab]``).
"""

from groupnorm import errors, functional, nn
from groupnorm.conversion import (
    Plan,
    accelerate_,
    calibrate_,
    convert,
    convert_,
    load_checkpoint_,
    plan,
    recompute_statistics_,
)
from groupnorm.functional import explain
from groupnorm.nn import GroupNorm, norm_layer, set_total_steps, wire_
from groupnorm.nn.catalog import catalog
from groupnorm.nn.own import check_norm

__version__ = "0.1.0"

__all__ = [
    "GroupNorm",
    "Plan",
    "__version__",
    "accelerate_",
    "calibrate_",
    "catalog",
    "check_norm",
    "convert",
    "convert_",
    "errors",
    "explain",
    "functional",
    "load_checkpoint_",
    "nn",
    "norm_layer",
    "plan",
    "recompute_statistics_",
    "set_total_steps",
    "wire_",
]
