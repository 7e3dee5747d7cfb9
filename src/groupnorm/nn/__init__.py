"""What people put into models: the layers, their catalog and the factory that makes them from a spec."""

from groupnorm.nn.batch_channel_norm import BatchChannelNorm
from groupnorm.nn.batch_group_norm import BatchGroupNorm
from groupnorm.nn.batch_renorm import BatchRenorm
from groupnorm.nn.catalog import CATALOG, Norm, catalog, replacements
from groupnorm.nn.continual_norm import ContinualNorm
from groupnorm.nn.cross_iteration_batch_norm import CrossIterationBatchNorm
from groupnorm.nn.estimated_batch_channel_norm import EstimatedBatchChannelNorm
from groupnorm.nn.evonorm_b0 import EvoNormB0
from groupnorm.nn.evonorm_s0 import EvoNormS0
from groupnorm.nn.factory import norm_layer
from groupnorm.nn.filter_response_norm import FilterResponseNorm
from groupnorm.nn.general_batch_group_norm import GeneralBatchGroupNorm
from groupnorm.nn.ghost_batch_norm import GhostBatchNorm
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.nn.moving_average_batch_norm import MovingAverageBatchNorm
from groupnorm.nn.power_norm import PowerNorm
from groupnorm.nn.rms_norm import RMSNorm
from groupnorm.nn.schedule import set_total_steps
from groupnorm.nn.switchable_norm import SwitchableNorm
from groupnorm.nn.sync_batch_norm import SyncBatchNorm
from groupnorm.nn.weight_standardization import WeightStandardization, standardize_weight_, unstandardize_weight_
from groupnorm.nn.wiring import wire_
from groupnorm.nn.within_channel_response_norm import WithinChannelResponseNorm

__all__ = [
    "CATALOG",
    "BatchChannelNorm",
    "BatchGroupNorm",
    "BatchRenorm",
    "ContinualNorm",
    "CrossIterationBatchNorm",
    "EstimatedBatchChannelNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GeneralBatchGroupNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "MovingAverageBatchNorm",
    "Norm",
    "PowerNorm",
    "RMSNorm",
    "SwitchableNorm",
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
