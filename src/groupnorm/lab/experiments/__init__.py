"""The experiments of the literature: one readable file each, run with ``groupnorm run NAME --scale small``."""

from groupnorm.lab.experiments import (
    batch_size,
    conversion,
    depth,
    groups,
    hybrids,
    inputs,
    large_batch,
    micro_batch,
    non_iid,
    norms,
    renorm,
    robustness,
    shift,
    signals,
    vgg,
    xray,
)
from groupnorm.lab.experiments.framework.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        batch_size.EXPERIMENT,
        norms.EXPERIMENT,
        renorm.EXPERIMENT,
        depth.EXPERIMENT,
        groups.EXPERIMENT,
        vgg.EXPERIMENT,
        large_batch.EXPERIMENT,
        micro_batch.EXPERIMENT,
        hybrids.EXPERIMENT,
        signals.EXPERIMENT,
        inputs.EXPERIMENT,
        shift.EXPERIMENT,
        non_iid.EXPERIMENT,
        robustness.EXPERIMENT,
        xray.EXPERIMENT,
        conversion.EXPERIMENT,
    )
}
"""In the order of the papers' argument."""
