"""What people put into models: the layers, their catalog and the factory that makes them from a spec."""

from groupnorm.nn.catalog import CATALOG, Norm, catalog, replacements
from groupnorm.nn.cross_iteration_batch_norm import CrossIterationBatchNorm
from groupnorm.nn.evonorm_b0 import EvoNormB0
from groupnorm.nn.evonorm_s0 import EvoNormS0
from groupnorm.nn.factory import norm_layer
from groupnorm.nn.filter_response_norm import FilterResponseNorm
from groupnorm.nn.ghost_batch_norm import GhostBatchNorm
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.nn.rms_norm import RMSNorm
from groupnorm.nn.schedule import set_total_steps
from groupnorm.nn.sync_batch_norm import SyncBatchNorm
from groupnorm.nn.weight_standardization import WeightStandardization, standardize_weight_, unstandardize_weight_
from groupnorm.nn.wiring import wire_
from groupnorm.nn.within_channel_response_norm import WithinChannelResponseNorm

__all__ = [
    "CATALOG",
    "CrossIterationBatchNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "Norm",
    "RMSNorm",
    "SyncBatchNorm",
    "WeightStandardization",
    "WithinChannelResponseNorm",
    "catalog",
    "norm_layer",
    "replacements",
    "set_total_steps",
    "standardize_weight_",
    "unstandardize_weight_",
    "wire_",
]
