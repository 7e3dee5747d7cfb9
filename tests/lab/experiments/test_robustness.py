"""Errors under attack, and training under attack."""

import torch

from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import load
from groupnorm.lab.experiments.robustness import AdversarialTraining, Attacked, resnet18_cifar
from groupnorm.nn import norm_layer


def run(kind):
    digits = load("digits", limit_train=64, limit_val=40)
    options = {"white": 16, "images": 40, "steps": 3, "training_steps": 2, "training_step_size": 6}
    return kind(
        Cell(
            dataset="digits", data_digest=digits.digest, model="resnet-tiny", norm="bn", batch_size=16,
            normalization_batch=None, seed=0, epochs=1, learning_rate=0.1, momentum=0.9, weight_decay=0.0,
            limit_train=64, limit_val=40, image_size=None, device="cpu", precision="fp32", threads=1, options=options,
        ),
        digits,
    )  # fmt: skip


def test_a_larger_radius_raises_the_error_and_the_attack_changes_nothing_in_the_network():
    training = run(Attacked)
    record = training.epoch()
    state = {name: value.clone() for name, value in training.model.state_dict().items()}
    again = training.measure()
    assert {name: record[name] for name in again} == again
    assert all(torch.equal(value, training.model.state_dict()[name]) for name, value in state.items())
    assert record["attacked 8"] >= record["attacked 2"]


def test_adversarial_training_trains_on_images_within_the_radius_in_training_mode(monkeypatch):
    training, seen = run(AdversarialTraining), []
    images, labels = next(training.batches())
    forward = training.model.forward

    def spy(shown):
        seen.append((training.model.training, shown.detach().clone()))
        return forward(shown)

    monkeypatch.setattr(training.model, "forward", spy)
    training.model.train()
    training.step(images, labels)
    assert [mode for mode, _ in seen] == [False, False, True]
    std, mean = training.dataset.std, training.dataset.mean
    stored, changed = images * std + mean, seen[-1][1] * std + mean
    assert 0.25 < (changed - stored).abs().max() <= 8 / 255 * 16 + 1e-4
    assert changed.min() >= -1e-4
    assert changed.max() <= 16 + 1e-4


def test_resnet18_for_cifar_has_the_parameters_of_its_authors_table():
    model = resnet18_cifar(norm_layer("bn"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
