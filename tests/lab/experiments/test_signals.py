"""What passes through a network, and when it is as good as another."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import load
from groupnorm.lab.experiments.framework.claim import judge
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.probe import Layer, probe, similarity
from groupnorm.lab.experiments.signals import EXPERIMENT, SignalsTraining, steps_to_target, time_ratio


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit_train=64, limit_val=40)


def training_cell(norm="bn", variance=2.0, epochs=3, seed=0):
    return Cell(
        dataset="digits", data_digest="", model="vgg-small", norm=norm, batch_size=32,
        normalization_batch=None, seed=seed, epochs=epochs, learning_rate=0.02, momentum=0.9, weight_decay=0.0,
        limit_train=64, limit_val=40, image_size=None, device="cpu", precision="fp32", threads=1,
        options={"variance": variance},
    )  # fmt: skip


def training(digits, norm="bn", variance=2.0, epochs=3):
    return SignalsTraining(training_cell(norm, variance, epochs), digits)


def untimed(record):
    return {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}


def layer(output):
    return Layer(output, torch.zeros_like(output))


def test_outputs_and_gradients_are_those_of_autograd():
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    second = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*first, *second, nn.Linear(6, 3))
    inputs, labels = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    hidden = first(inputs)
    features = second(hidden)
    expected = torch.autograd.grad(F.cross_entropy(model[-1](features), labels), [hidden, features])
    found = probe(model, inputs, labels)
    assert len(found) == 2
    for seen, output, gradient in zip(found, (hidden, features), expected, strict=True):
        torch.testing.assert_close(seen.output, output)
        torch.testing.assert_close(seen.gradient, gradient)


def test_a_look_leaves_the_network_as_it_was(digits):
    run = training(digits)
    before = copy.deepcopy(run.model.state_dict())
    run.look()
    assert all(torch.equal(before[key], value) for key, value in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())


def test_moments_are_those_of_each_channel():
    output = torch.randn(5, 3, 4, 2)
    mean, std = layer(output).moments()
    np.testing.assert_allclose(mean.numpy(), output.numpy().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std.numpy(), output.numpy().std(), rtol=1e-5)


def test_similarity_is_linear_cka_as_its_paper_has_it():
    """Kornblith et al. 2019, equation for linear kernels: ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred columns."""
    x, y = np.random.default_rng(0).normal(size=(2, 20, 6))
    y = 0.5 * x + y
    cx, cy = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(cy.T @ cx) ** 2 / np.linalg.norm(cx.T @ cx) / np.linalg.norm(cy.T @ cy)
    found = similarity(layer(torch.tensor(x)).likeness(), layer(torch.tensor(y)).likeness())
    assert found == pytest.approx(expected)
    assert 0.1 < found < 0.9


def test_batch_norm_makes_the_gradient_independent_of_the_initial_weights_and_none_does_not(digits):
    def start(norm, variance):
        return training(digits, norm, variance).start["start_1"]

    assert start("bn", 1.0) == pytest.approx(start("bn", 2.0), rel=0.05)
    assert start("none", 1.0) == pytest.approx(start("none", 2.0) / 2**6, rel=0.05)  # of 12 layers behind the first


def test_the_shift_is_that_of_channel_means_in_the_standard_deviation_before(digits):
    run = training(digits, epochs=1)
    (old_mean, old_std), *_ = run.moments
    record = run.epoch()
    (mean, _), *_ = run.moments
    assert record["shift_1"] == pytest.approx((((mean - old_mean) ** 2).mean() ** 0.5 / old_std).item(), rel=1e-5)
    assert record["shift_1"] > 0
    assert "settled_1" not in record  # of one epoch


def test_layers_are_compared_with_their_end_once_it_is_there_also_after_a_break(digits, tmp_path):
    whole = training(digits)
    records = [whole.epoch()]
    torch.save(whole.state_dict(), tmp_path / "checkpoint.pt")
    records += [whole.epoch(), whole.epoch()]
    resumed = training(digits)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert untimed(resumed.epoch()) == untimed(records[1])
    assert untimed(resumed.epoch()) == untimed(records[2])
    assert "settled_1" not in records[1]
    *earlier, last = whole.likenesses
    expected = [np.mean([(now[i] * last[i]).sum().item() for now in earlier]) for i in range(13)]
    assert [records[2][f"settled_{i}"] for i in range(1, 14)] == pytest.approx(expected, rel=1e-5)


def found(runs, epochs=3):
    """Evidence of runs, ``(arm, norm, seed): errors`` by epoch; one with fewer diverged, None waits."""
    rows = [
        {
            "arm": arm,
            "cell": training_cell(norm=norm, seed=seed).model_dump(exclude_defaults=True),
            "status": "pending" if errors is None else "finished" if len(errors) == epochs else "diverged",
            "reason": "",
            "epochs": [
                {"epoch": i, "step": 10 * i, "error": error, "seconds": error / 10}
                for i, error in enumerate(errors or [], 1)
            ],
        }
        for (arm, norm, seed), errors in runs.items()
    ]
    return Evidence({"last": 1, "arms": {"he": {"classes": 10}}}, rows)


def test_steps_to_the_target_count_to_the_first_epoch_that_is_as_good():
    none, bn = {0: [50, 20, 21], 1: [50, 40, 30]}, {0: [20, 15, 90], 1: [90, 90, 31]}
    evidence = found({("he", norm, s): e for norm, runs in (("none", none), ("bn", bn)) for s, e in runs.items()})
    assert steps_to_target(evidence, "none", "he").to_dict() == {0: 20, 1: 30}
    assert steps_to_target(evidence, "bn", "he").to_dict() == {0: 10, 1: 30}  # never: all of its steps


def test_a_run_that_diverged_does_not_pass_for_a_fast_one():
    runs = {("he", "none", 0): [50, 40, 20], ("he", "none", 1): [50, 40, 20], ("he", "none", 2): []}
    evidence = found(runs | {("he", "bn", 0): [45], ("he", "bn", 1): [], ("he", "bn", 2): [30, 20, 10]})
    assert steps_to_target(evidence, "bn", "he").to_dict() == {0: 30, 1: 30}  # 2 has no target


def test_times_are_compared_epoch_by_epoch():
    evidence = found({("he", "gn", s): [20, 30, 60] for s in (0, 1)} | {("he", "bn", s): [10, 20, 30] for s in (0, 1)})
    assert time_ratio(evidence).to_dict() == {1: 2.0, 2: 1.5, 3: 2.0}


def test_what_has_not_run_yet_is_no_error():
    evidence = found({("he", "bn", 0): None, ("he", "none", 0): None})
    assert not len(time_ratio(evidence))
    assert all(judge(claim, "signals", evidence).verdict == "not run" for claim in EXPERIMENT.claims)
