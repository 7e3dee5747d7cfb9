"""The experiments of the literature: one readable file each, run with ``groupnorm run NAME --scale small``."""

from groupnorm.lab.experiments import batch_size
from groupnorm.lab.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (batch_size.EXPERIMENT,)}
"""In the order of the papers' argument."""
