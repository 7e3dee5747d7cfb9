"""Any model's norms turned into others: a plan, the conversion after it, and the way back."""

from groupnorm.conversion.accelerate import accelerate_
from groupnorm.conversion.calibrate import Calibration, calibrate_
from groupnorm.conversion.checkpoint import Loaded, load_checkpoint_
from groupnorm.conversion.convert import NothingConvertedWarning, convert, convert_
from groupnorm.conversion.plan import Plan, Row
from groupnorm.conversion.planning import plan
from groupnorm.conversion.population import recompute_statistics_
from groupnorm.conversion.report import Report
from groupnorm.conversion.rules import Facts, rule

__all__ = [
    "Calibration",
    "Facts",
    "Loaded",
    "NothingConvertedWarning",
    "Plan",
    "Report",
    "Row",
    "accelerate_",
    "calibrate_",
    "convert",
    "convert_",
    "load_checkpoint_",
    "plan",
    "recompute_statistics_",
    "rule",
]

convert.rule = rule  # type: ignore[attr-defined]
convert.Facts = Facts  # type: ignore[attr-defined]
