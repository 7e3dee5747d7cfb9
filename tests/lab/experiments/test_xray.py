"""The area under the ROC curve."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from groupnorm.lab.experiments.xray import EXPERIMENT, area_under_curve
from groupnorm.lab.regimes import training
from groupnorm.lab.sweeps.configuration import plan


def test_it_is_the_share_of_pairs_in_the_right_order_with_ties_counted_half():
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 6, 60).astype(float), random.integers(0, 2, 60)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert area_under_curve(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    assert area_under_curve(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_it_is_undefined_with_one_class():
    assert math.isnan(area_under_curve(np.array([0.1, 0.2]), np.array([1, 1])))


def pair_of_classes():
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 2
    images = torch.randn(48, 1, 8, 8, generator=generator) + 3 * labels.view(-1, 1, 1, 1)
    return images[:32], labels[:32], images[32:], labels[32:]


def test_a_training_records_it_for_the_second_class():
    """Classes that are easily told apart come out near 1, not near 0."""
    options = {**EXPERIMENT.smoke.arms["rays"][0], "dataset": f"{__name__}:pair_of_classes"}
    changes = {"limit_train": None, "limit_val": None, "batch_sizes": (4,), "norms": ("gn:8",), "epochs": 4, "seeds": 1}
    comparison, dataset = plan(**{**options, **changes})
    run = training(comparison.cells(dataset.digest)[0], dataset)
    while not run.finished:
        record = run.epoch()
    assert record["auc"] > 0.9
