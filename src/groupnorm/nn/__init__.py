"""What people put into models: the layers, their catalog and the factory that makes them from a spec."""

from groupnorm.nn.catalog import CATALOG, Norm
from groupnorm.nn.factory import norm_layer
from groupnorm.nn.group_norm import GroupNorm

__all__ = ["CATALOG", "GroupNorm", "Norm", "norm_layer"]
