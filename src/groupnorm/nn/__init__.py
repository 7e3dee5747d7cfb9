"""What people put into models: the layers, their catalog and the factory that makes them from a spec."""

from groupnorm.nn.catalog import CATALOG, Norm, catalog
from groupnorm.nn.cross_iteration_batch_norm import CrossIterationBatchNorm
from groupnorm.nn.factory import norm_layer
from groupnorm.nn.ghost_batch_norm import GhostBatchNorm
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.nn.schedule import set_total_steps
from groupnorm.nn.sync_batch_norm import SyncBatchNorm
from groupnorm.nn.weight_standardization import WeightStandardization, standardize_weight_, unstandardize_weight_
from groupnorm.nn.wiring import wire_

__all__ = [
    "CATALOG",
    "CrossIterationBatchNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "Norm",
    "SyncBatchNorm",
    "WeightStandardization",
    "catalog",
    "norm_layer",
    "set_total_steps",
    "standardize_weight_",
    "unstandardize_weight_",
    "wire_",
]
