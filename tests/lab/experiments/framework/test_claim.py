"""Verdicts follow from the interval alone."""

import math

import pandas as pd
import pytest

from groupnorm.lab.analysis.statistics import estimate
from groupnorm.lab.experiments.framework.claim import Claim, Effect, judge
from groupnorm.lab.experiments.framework.evidence import Evidence

NOTHING = Evidence({}, [])


def claim(*effects):
    return Claim("id", "statement", "source", "-", "refuted", effects)


def effect(values, **bounds):
    return Effect("effect", lambda evidence: pd.Series(values, dtype=float), **bounds)


@pytest.mark.parametrize(
    ("values", "bounds", "verdict"),
    [
        ([5, 5.1, 4.9], {"above": 3}, "reproduced"),
        ([1, 1.1, 0.9], {"above": 3}, "not reproduced"),
        ([2, 3, 4], {"above": 3}, "inconclusive"),
        ([0.1, 0.0, -0.1], {"above": -2, "below": 2}, "reproduced"),
        ([-3, -3.1, -2.9], {"above": -2, "below": 2}, "not reproduced"),
        ([3, 3.1, 2.9], {"below": 2}, "not reproduced"),
        ([1.5, 2.0, 2.5], {"below": 2}, "inconclusive"),
        ([-6.25, -6.25], {"above": 3}, "inconclusive"),
        ([5, 5, 5], {"above": 3}, "inconclusive"),
        ([2.1 - 1.9, 2.2 - 2.0], {"above": 0}, "inconclusive"),
        ([9], {"above": 3}, "inconclusive"),
        ([], {"above": 3}, "not run"),
        ([math.nan, math.nan], {"above": 3}, "not run"),
    ],
)
def test_the_interval_decides(values, bounds, verdict):
    found = effect(values, **bounds)
    assert found.verdict(estimate(values)) == verdict
    assert judge(claim(found), "name", NOTHING).verdict == verdict


def test_all_effects_have_to_hold_and_one_that_fails_decides():
    right, wrong, unsure = (effect(values, above=3) for values in ([5, 5.1], [1, 1.1], [2, 3, 4]))
    assert judge(claim(right, right), "name", NOTHING).verdict == "reproduced"
    assert judge(claim(right, unsure), "name", NOTHING).verdict == "inconclusive"
    assert judge(claim(unsure, wrong, right), "name", NOTHING).verdict == "not reproduced"
    assert judge(claim(right, effect([], above=3)), "name", NOTHING).verdict == "not run"


def test_without_evidence_nothing_was_run():
    finding = judge(claim(effect([5, 5, 5], above=3)), "name", None)
    assert (finding.verdict, finding.estimates, finding.evidence) == ("not run", (), None)


def test_smoke_is_measured_and_not_judged():
    finding = judge(claim(effect([5, 5.1, 4.9], above=3)), "name", Evidence({"scale": "smoke"}, []))
    assert finding.verdict == "no verdict"
    assert finding.estimates[0].mean == pytest.approx(5)


def test_the_bounds_are_written_out():
    assert effect([], above=-2, below=2).expected == "> -2 and < 2"
    assert effect([], below=0.5).expected == "< 0.5"
