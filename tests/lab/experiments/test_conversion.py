"""The experiment about conversions: what it begins with, and what it says of it."""

import math

import pytest
import torch
from torch import nn

from groupnorm.lab.common.trial import Cell
from groupnorm.lab.experiments import conversion
from groupnorm.lab.experiments.conversion import EXPERIMENT, FineTuning, table
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.sweeps.configuration import plan
from groupnorm.nn import FrozenBatchNorm, GroupNorm


@pytest.fixture(scope="module")
def trainings():
    """One training of each kind at smoke, as they start."""
    conversion._trained.clear()
    return {
        (cell.norm, cell.options["start"]): FineTuning(cell, dataset)
        for arm in EXPERIMENT.smoke.arms["digits"]
        for comparison, dataset in [plan(**{**arm, "seeds": 1, "device": "cpu"})]
        for cell in comparison.cells(dataset.digest)
    }


def norms(training):
    return [m for m in training.model.modules() if isinstance(m, (nn.BatchNorm2d, GroupNorm, FrozenBatchNorm))]


def test_all_begin_with_the_same_trained_network(trainings):
    assert len(conversion._trained) == 1
    (original,) = conversion._trained.values()
    assert len({training.before["original"] for training in trainings.values()}) == 1
    assert original.norm.num_batches_tracked == 2  # one epoch of 64 images
    for training in trainings.values():
        assert torch.equal(training.model.conv.weight, original.conv.weight)
        assert training.model.conv.weight is not original.conv.weight


def test_each_has_the_norms_of_its_cell(trainings):
    kinds = {key: {type(norm) for norm in norms(training)} for key, training in trainings.items()}
    assert kinds == {
        ("bn", "calibrated"): {nn.BatchNorm2d},
        ("frozen", "calibrated"): {FrozenBatchNorm},
        ("gn:4", "calibrated"): {GroupNorm},
        ("gn:4", "copied"): {GroupNorm},
    }


def test_calibration_moves_the_norms_of_one_start_and_not_of_the_other(trainings):
    (original,) = conversion._trained.values()
    copied, calibrated = (norms(trainings["gn:4", start])[0].weight for start in ("copied", "calibrated"))
    assert torch.equal(copied, original.norm.weight)
    assert not torch.allclose(calibrated, original.norm.weight)
    assert all(math.isfinite(trainings["gn:4", "copied"].before[stage]) for stage in ("copied", "calibrated"))
    assert trainings["gn:4", "calibrated"].before == trainings["gn:4", "copied"].before


def test_the_error_after_some_steps_is_taken_on_the_way_and_kept(trainings, monkeypatch):
    monkeypatch.setattr(conversion, "_EARLY", 3)
    training = trainings["frozen", "calibrated"]
    seen = []
    record = training.epoch(seen.append)
    assert seen[-1] == record["step"] == 32
    assert 0 <= record["early"] <= 100
    assert record["original"] == training.before["original"]
    assert training.model.training is False  # measured last
    again = FineTuning(training.cell, training.dataset)
    again.load_state_dict(training.state_dict())
    assert again.before["early"] == record["early"]


def cell(norm, start):
    fields = dict.fromkeys(Cell.model_fields) | {
        "dataset": "d", "data_digest": "", "model": "m", "norm": norm, "batch_size": 2, "seed": 0, "epochs": 1,
        "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0, "device": "cpu", "precision": "fp32", "threads": 1,
        "schedule": "cosine", "warmup_epochs": 0.0, "augment": "none", "processes": 1,
        "regime": "standard", "optimizer": "sgd",
        "options": {"start": start},
    }  # fmt: skip
    return Cell(**fields).model_dump(mode="json")


def evidence(**errors):
    rows = [
        {"arm": "fashion-mnist", "cell": cell(norm, start), "status": "finished", "reason": "",
         "epochs": [{"epoch": 1, "step": 9, "train_error": 0.0, "seconds": 1.0, **found}]}
        for norm, start, found in (
            ("bn", "calibrated", {"original": 9.0, "error": errors["bn"]}),
            ("frozen", "calibrated", {"original": 9.0, "error": errors["frozen"]}),
            ("gn:4", "calibrated", {"original": 9.0, "copied": 90.0, "calibrated": 10.0, "error": errors["gn"]}),
            ("gn:4", "copied", {"original": 9.0, "copied": 90.0, "calibrated": 10.0, "error": 50.0}),
            ("gn", "calibrated", {"original": 9.0, "copied": 80.0, "calibrated": 12.0, "error": 12.0}),
        )
    ]  # fmt: skip
    return Evidence({"last": 1, "arms": {"fashion-mnist": {"classes": 10, "dataset": "d", "model": "m"}}}, rows)


def test_the_effects_are_the_differences_they_are_called():
    found = evidence(bn=30.0, frozen=8.5, gn=9.5)
    measured = {claim.id: float(claim.effects[0].measure(found).iloc[0]) for claim in EXPERIMENT.claims}
    assert measured == {
        "conversion-copied": 81.0,
        "conversion-calibrated": 1.0,
        "conversion-fine-tuned": 0.5,
        "conversion-bn-at-two": 20.5,
        "conversion-frozen": -1.0,
    }


def test_the_table_tells_the_lines_apart():
    rows = table(evidence(bn=30.0, frozen=8.5, gn=9.5)).set_index("line")
    assert list(rows.index) == ["bn", "frozen", "gn:4", "gn:4 (copied)", "gn:auto"]
    assert rows.loc["gn:4 (copied)", "error"] == 50.0
    assert math.isnan(rows.loc["gn:4 (copied)", "calibrated"])
    assert rows.loc["gn:4", "calibrated"] == 10.0
    assert math.isnan(rows.loc["bn", "copied"])
