"""Batch renorm with limits of choice."""

from groupnorm.lab.experiments.renorm import EXPERIMENT
from groupnorm.lab.regimes import training
from groupnorm.lab.sweeps.configuration import plan
from groupnorm.nn import BatchRenorm


def limits(arm):
    comparison, dataset = plan(**EXPERIMENT.smoke.arms[arm][0])
    run = training(comparison.cells(dataset.digest)[0], dataset)
    return {(m.r_max, m.d_max) for m in run.model.modules() if isinstance(m, BatchRenorm)}


def test_the_arms_have_the_limits_of_wu_and_he_and_of_ioffe():
    assert limits("brn") == {(1.5, 0.5)}
    assert limits("brn-ioffe") == {(3.0, 5.0)}
