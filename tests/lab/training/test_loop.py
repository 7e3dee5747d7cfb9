"""One training run: the paper's rules, reproducible to the bit."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from groupnorm.errors import SingleElementError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import load
from groupnorm.lab.training.loop import DivergedError, Training
from groupnorm.nn import replacements


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit_train=96, limit_val=40)


@pytest.fixture(scope="module")
def larger_digits():
    """The network's last map is 2x2 on these, so that no norm has a single element."""
    return load("digits", limit_train=96, limit_val=40, image_size=16)


def cell(digits, **changes):
    fields = {
        "dataset": "digits", "data_digest": digits.digest, "model": "resnet-tiny", "norm": "gn", "batch_size": 16,
        "normalization_batch": None, "seed": 0, "epochs": 2, "learning_rate": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "limit_train": 96, "limit_val": 40, "image_size": None, "device": "cpu",
        "precision": "fp32", "threads": 1,
    }  # fmt: skip
    return Cell(**{**fields, **changes})


def untimed(record):
    return {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def test_a_run_repeats_bit_for_bit(digits):
    first, second = Training(cell(digits), digits), Training(cell(digits), digits)
    assert untimed(first.epoch()) == untimed(second.epoch())
    assert torch.equal(weights(first), weights(second))


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(digits):
    whole = Training(cell(digits, norm="bn"), digits)
    whole.epoch()
    state = {k: (v.clone() if isinstance(v, torch.Tensor) else v) for k, v in whole.state_dict().items()}
    resumed = Training(cell(digits, norm="bn"), digits)
    resumed.load_state_dict(copy.deepcopy(state))
    assert untimed(resumed.epoch()) == untimed(whole.epoch())
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.finished
    assert resumed.finished


@pytest.mark.parametrize("norm", replacements())
def test_every_norm_goes_on_from_a_checkpoint_bit_for_bit(larger_digits, norm, tmp_path):
    """Running statistics, windows and the place in a schedule are part of the checkpoint."""
    whole = Training(cell(larger_digits, norm=norm, image_size=16), larger_digits)
    whole.epoch()
    torch.save(whole.state_dict(), tmp_path / "checkpoint.pt")
    resumed = Training(cell(larger_digits, norm=norm, image_size=16), larger_digits)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert untimed(resumed.epoch()) == untimed(whole.epoch())
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize(("batch", "part", "passes"), [(16, None, 2 * 6), (16, 4, 2 * 6 * 4), (32, None, 2 * 3)])
def test_norms_with_a_schedule_are_told_the_forward_passes_of_the_run(digits, monkeypatch, batch, part, passes):
    told = []
    monkeypatch.setattr("groupnorm.lab.training.loop.set_total_steps", lambda model, steps: told.append(steps))
    training = Training(cell(digits, batch_size=batch, normalization_batch=part), digits)
    assert told == [passes]
    assert passes == training.steps_per_epoch * 2 * batch // (part or batch)


def test_draws_of_python_and_numpy_are_seeded_and_resumed(digits):
    """A network of the user's own may draw from any of them."""

    def draws():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    training = Training(cell(digits), digits)
    first = draws()
    state = training.state_dict()
    second = draws()
    again = Training(cell(digits), digits)
    assert draws() == first
    draws()
    again.load_state_dict(state)
    assert draws() == second


def test_runs_of_one_seed_share_initial_weights_and_image_order_across_norms(digits):
    bn, gn = Training(cell(digits, norm="bn"), digits), Training(cell(digits, norm="gn"), digits)
    assert torch.equal(bn.model.conv.weight, gn.model.conv.weight)
    assert torch.equal(bn.model.fc.weight, gn.model.fc.weight)
    for (images, labels), (same_images, same_labels) in zip(bn.batches(), gn.batches(), strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_epochs_visit_every_image_in_a_new_order(digits):
    training = Training(cell(digits, batch_size=16), digits)
    first = torch.cat([labels for _, labels in training.batches()])
    training.epochs_done = 1
    second = torch.cat([labels for _, labels in training.batches()])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_the_step_schedule_is_the_papers(digits):
    training = Training(cell(digits, epochs=100, batch_size=32, schedule="step"), digits)
    at = {epoch: training.learning_rate(epoch * training.steps_per_epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 99)}
    expected = {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001, 90: 0.0001, 99: 0.0001}
    assert at == pytest.approx(expected)


def test_a_warm_up_rises_in_a_straight_line_to_the_schedule(digits):
    training = Training(cell(digits, epochs=10, batch_size=32, warmup_epochs=2.0, schedule="step"), digits)
    steps = 2 * training.steps_per_epoch
    assert [training.learning_rate(step) for step in range(steps)] == pytest.approx(
        [0.1 * (step + 1) / steps for step in range(steps)]
    )
    assert training.learning_rate(steps) == pytest.approx(0.1)


def test_the_learning_rate_is_proportional_to_the_batch_and_falls_to_zero(digits):
    small, large = Training(cell(digits, batch_size=8), digits), Training(cell(digits, batch_size=32), digits)
    assert large.learning_rate(0) == pytest.approx(0.1)
    assert small.learning_rate(0) == pytest.approx(0.1 * 8 / 32)
    assert small.learning_rate(small.steps_per_epoch * 2) == pytest.approx(0, abs=1e-12)


def test_a_normalization_batch_is_the_mean_of_the_workers_gradients(digits):
    training = Training(cell(digits, norm="bn", batch_size=16, normalization_batch=4), digits)
    images, labels = next(training.batches())
    training.model.train()
    expected = [torch.zeros_like(p) for p in training.model.parameters()]
    for part, target in zip(images.split(4), labels.split(4), strict=True):
        loss = nn.functional.cross_entropy(training.model(part), target)
        for total, gradient in zip(expected, torch.autograd.grad(loss, list(training.model.parameters())), strict=True):
            total += gradient / 4
    training.step(images, labels)
    for parameter, gradient in zip(training.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_group_norm_does_not_notice_the_normalization_batch_but_batch_norm_does(digits):
    def gradients(norm, part):
        training = Training(cell(digits, norm=norm, normalization_batch=part), digits)
        training.model.train()
        training.step(*next(training.batches()))
        return torch.cat([p.grad.flatten() for p in training.model.parameters()])

    torch.testing.assert_close(gradients("gn", None), gradients("gn", 4), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(gradients("bn", None), gradients("bn", 4), rtol=1e-1, atol=1e-3)


def test_divergence_is_named_with_its_step(digits):
    training = Training(cell(digits, norm="none", learning_rate=1e8), digits)
    with pytest.raises(DivergedError, match=r"loss became (nan|inf) .* step 6"):
        training.epoch()


@pytest.mark.parametrize(("norm", "batch_size"), [("in", 16), ("bn", 1)])
def test_one_element_per_statistic_is_undefined_not_trained(digits, norm, batch_size):
    with pytest.raises(SingleElementError):
        Training(cell(digits, norm=norm, batch_size=batch_size), digits).epoch()


def test_bf16_trains_through_the_same_code(digits):
    record = Training(cell(digits, precision="bf16"), digits).epoch()
    assert 0 <= record["error"] <= 100
    assert record["loss"] > 0


def test_an_incomplete_last_batch_is_dropped(digits):
    training = Training(cell(digits, batch_size=36), digits)
    assert training.steps_per_epoch == 2
    assert [len(labels) for _, labels in training.batches()] == [36, 36]


def test_inputs_prepared_once_are_those_of_each_batch(digits, monkeypatch):
    once = list(Training(cell(digits), digits).batches())
    monkeypatch.setattr("groupnorm.lab.training.loop._PREPARED_BYTES", 0)
    for (images, labels), (same_images, same_labels) in zip(
        once, Training(cell(digits), digits).batches(), strict=True
    ):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_trainings_in_turn_draw_as_each_does_alone(digits):
    first, second = Training(cell(digits), digits), None
    with first.rng_scope():
        alone = torch.rand(1), random.random()
    first = Training(cell(digits), digits)
    with first.rng_scope():
        pass
    second = Training(cell(digits, seed=1), digits)
    with second.rng_scope():
        torch.rand(1)
    with first.rng_scope():
        assert (torch.rand(1), random.random()) == alone
