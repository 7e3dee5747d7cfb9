"""What people put into models: the layers, their catalog and the factory that makes them from a spec."""

from groupnorm.nn import catalog
from groupnorm.nn.catalog import *
from groupnorm.nn.factory import norm_layer
from groupnorm.nn.schedule import set_total_steps
from groupnorm.nn.weight_standardization import standardize_weight_, unstandardize_weight_
from groupnorm.nn.wiring import wire_

__all__ = ["norm_layer", "set_total_steps", "standardize_weight_", "unstandardize_weight_", "wire_"]
__all__ += catalog.__all__
