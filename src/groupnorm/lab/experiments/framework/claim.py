"""A claim of the literature, what would refute it, and the verdict on what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pandas as pd

from groupnorm.lab.analysis.statistics import Estimate, estimate

if TYPE_CHECKING:
    from groupnorm.lab.experiments.framework.evidence import Evidence

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "no verdict", "not run"]
"""About a claim. "no verdict": what ran is too small to judge, the scale smoke."""


@dataclass(frozen=True)
class Effect:
    """A number that a claim speaks about, with the values that the claim allows.

    Attributes:
        name: what is measured, with its unit.
        measure: from the evidence to its value for each seed (index), paired wherever two runs are compared.
        above: the claim says that the true value is larger than this; None is no bound.
        below: the claim says that the true value is smaller than this; None is no bound.
        over: what the interval is over.
    """

    name: str
    measure: Callable[[Evidence], pd.Series[float]]
    above: float | None = None
    below: float | None = None
    over: str = "seeds"

    def verdict(self, found: Estimate) -> Verdict:
        """Reproduced when the whole 95% interval is allowed, not reproduced when none of it is, else inconclusive.

        So is an interval of no width: two seeds with the same value say nothing about a third.
        """
        if not found.n:
            return "not run"
        low = -math.inf if self.above is None else self.above
        high = math.inf if self.below is None else self.below
        if not found.low < found.high:
            return "inconclusive"
        if low < found.low and found.high < high:
            return "reproduced"
        return "not reproduced" if found.high <= low or high <= found.low else "inconclusive"

    @property
    def expected(self) -> str:
        """The values that the claim allows, in words."""
        parts = [f"> {self.above:g}"] if self.above is not None else []
        parts += [f"< {self.below:g}"] if self.below is not None else []
        return " and ".join(parts)


@dataclass(frozen=True)
class Claim:
    """A claim, its source, and the effects that decide about it.

    Attributes:
        id: a short name, unique in the ledger.
        statement: the claim in a sentence.
        source: where it is made: paper and table, figure or section.
        published: the published numbers; "-" if there are none.
        refuted: what would refute it.
        effects: all of them have to be as the claim says.
        note: why it does not hold at the scale that ran, or what to bear in mind; "" if nothing is known.
    """

    id: str
    statement: str
    source: str
    published: str
    refuted: str
    effects: tuple[Effect, ...]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """What was measured for a claim.

    Attributes:
        claim: the claim.
        experiment: name of the experiment that tests it.
        verdict: about the claim: "not reproduced" when one effect is, "reproduced" when all are; "no verdict" of the
            scale smoke.
        estimates: mean and 95% interval over seeds of each effect, in the claim's order; empty if not run.
        evidence: what it was measured on; None if not run.
    """

    claim: Claim
    experiment: str
    verdict: Verdict
    estimates: tuple[Estimate, ...] = field(default=())
    evidence: Evidence | None = None


def judge(claim: Claim, experiment: str, evidence: Evidence | None) -> Finding:
    """Measure a claim on the evidence of its experiment."""
    if evidence is None:
        return Finding(claim, experiment, "not run")
    estimates = tuple(estimate(effect.measure(evidence)) for effect in claim.effects)
    if evidence.head.get("scale") == "smoke":
        return Finding(claim, experiment, "no verdict", estimates, evidence)
    verdicts = [effect.verdict(found) for effect, found in zip(claim.effects, estimates, strict=True)]
    order: tuple[Verdict, ...] = ("not reproduced", "not run", "inconclusive", "reproduced")
    return Finding(claim, experiment, min(verdicts, key=order.index), estimates, evidence)
