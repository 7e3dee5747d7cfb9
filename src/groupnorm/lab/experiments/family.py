"""A norm by its family, "gn" for "gn:8", because the number of groups depends on the network and so on the scale."""

from __future__ import annotations

import pandas as pd

from groupnorm.lab.experiments.evidence import Evidence


def with_family(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column ``family``."""
    return rows.assign(family=rows["norm"].str.partition(":")[0])


def spec(evidence: Evidence, family: str, arm: str | None = None) -> str:
    """The spec under which a family takes part, in an arm or in any; the family itself where it does not."""
    rows = evidence.table if arm is None else evidence.table[evidence.table["arm"] == arm]
    return next((norm for norm in rows["norm"] if norm.partition(":")[0] == family), family)
