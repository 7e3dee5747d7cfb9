"""Batches of few classes, workers that hold few classes, and federated averaging."""

import copy

import pytest
import torch
from torch import Generator, nn

from groupnorm.errors import ArgumentError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import load
from groupnorm.lab.experiments.non_iid import EXPERIMENT
from groupnorm.lab.regimes.federated import Federated, Workers, average, split_images
from groupnorm.lab.regimes.few_classes import FewClasses, cycle, few_classes

LABELS = torch.arange(600) % 10


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit_train=200, limit_val=20)


def cell(digits, options, **changes):
    fields = {
        "dataset": "digits", "data_digest": digits.digest, "model": "resnet-tiny", "norm": "bn", "batch_size": 40,
        "normalization_batch": 10, "seed": 0, "epochs": 2, "learning_rate": 0.02, "momentum": 0.9,
        "weight_decay": 1e-4, "limit_train": 200, "limit_val": 20, "image_size": None, "device": "cpu",
        "precision": "fp32", "threads": 1, "options": options,
    }  # fmt: skip
    return Cell(**{**fields, **changes})


def seeded(seed=0):
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_each_part_has_images_of_so_many_classes_and_none_twice(classes):
    for part in few_classes(LABELS, classes, 30, 40, seeded()).split(30):
        assert len(LABELS[part].unique()) == classes
        assert len(part.unique()) == 30


def test_a_class_with_too_few_images_repeats_each_before_any_comes_a_third_time():
    part = few_classes(torch.tensor([0, 0, 0]), 1, 6, 1, seeded())
    assert part.bincount().tolist() == [2, 2, 2]


def test_all_classes_are_drawn_in_the_long_run():
    assert len(LABELS[few_classes(LABELS, 1, 4, 100, seeded())].unique()) == 10


def test_batches_of_all_classes_are_the_usual_order(digits):
    everything = FewClasses(cell(digits, {"classes": None}), digits).order()
    assert torch.equal(everything.sort().values, torch.arange(200))
    few = FewClasses(cell(digits, {"classes": 2}), digits)
    for part in few.order().split(10):
        assert len(digits.train_labels[part].unique()) == 2
    assert not torch.equal(few.order(), (setattr(few, "epochs_done", 1), few.order())[1])


def test_random_workers_share_out_all_images_and_skewed_ones_all_classes():
    for skewed, classes in ((False, 10), (True, 2)):
        shards = split_images(LABELS, 5, skewed, seeded())
        assert torch.equal(torch.cat(shards).sort().values, torch.arange(600))
        assert [len(LABELS[shard].unique()) for shard in shards] == [classes] * 5


def test_more_workers_than_classes_are_refused():
    with pytest.raises(ArgumentError, match="5 workers for 3 classes; expected at most one worker for each class"):
        split_images(torch.tensor([0, 1, 2]), 5, True, seeded())


@pytest.mark.parametrize("kind", [Workers, Federated])
def test_every_part_of_a_step_is_of_one_worker_and_every_worker_has_one(digits, kind):
    run = kind(cell(digits, {"workers": 4, "skewed": True, "local_steps": 1}), digits)
    owner = {image: worker for worker, shard in enumerate(run.shards) for image in shard.tolist()}
    turns = []
    for step in run.order().split(40):
        owners = [{owner[image] for image in part.tolist()} for part in step.split(10)]
        assert all(len(found) == 1 for found in owners)
        turns.append([found.pop() for found in owners])
        assert sorted(turns[-1]) == [0, 1, 2, 3]
    assert any(turn != [0, 1, 2, 3] for turn in turns) is (kind is Workers)


def test_a_batch_that_is_not_that_of_so_many_workers_is_refused(digits):
    with pytest.raises(ArgumentError, match="batch size 40 with a normalization batch of 10 is not 5 workers"):
        Workers(cell(digits, {"workers": 5, "skewed": False}), digits)


def test_local_steps_that_would_leave_a_round_open_at_the_end_of_an_epoch_are_refused(digits):
    with pytest.raises(ArgumentError, match="local_steps=2 does not divide the 5 steps of an epoch"):
        Federated(cell(digits, {"workers": 4, "skewed": False, "local_steps": 2}), digits)


def test_endless_gives_every_item_before_any_comes_again():
    items = torch.tensor([3, 5, 7])
    for part in cycle(items, 12, seeded()).split(3):
        assert torch.equal(part.sort().values, items)


def test_the_average_is_of_weights_and_running_statistics():
    norms = [nn.BatchNorm2d(3) for _ in range(3)]
    for value, norm in enumerate(norms, start=1):
        nn.init.constant_(norm.weight, value)
        norm.running_mean.fill_(10 * value)
        norm.num_batches_tracked.fill_(7)
    average(norms, into := nn.BatchNorm2d(3))
    assert into.weight.tolist() == [2, 2, 2]
    assert into.running_mean.tolist() == [20, 20, 20]
    assert into.num_batches_tracked == 7


def test_a_round_is_what_workers_on_their_own_make_of_it(digits):
    """Against plain SGD on each worker's images, written out, for one epoch that is one round of five steps."""
    run = Federated(cell(digits, {"workers": 4, "skewed": True, "local_steps": 5}), digits)
    start = copy.deepcopy(run.model)
    steps = list(run.batches())
    record = run.epoch()
    expected, losses = [], []
    for worker in range(4):
        model = copy.deepcopy(start).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
        for number, (images, labels) in enumerate(steps):
            optimizer.param_groups[0]["lr"] = run.learning_rate(number)
            optimizer.zero_grad()
            own = slice(10 * worker, 10 * worker + 10)
            loss = nn.functional.cross_entropy(model(images[own]), labels[own])
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        expected.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert record["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    found = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)


def test_federated_averaging_goes_on_from_a_checkpoint_bit_for_bit(digits, tmp_path):
    asked = cell(digits, {"workers": 4, "skewed": True, "local_steps": 1})
    whole = Federated(asked, digits)
    whole.epoch()
    torch.save(whole.state_dict(), tmp_path / "checkpoint.pt")
    resumed = Federated(asked, digits)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert resumed.epoch()["loss"] == whole.epoch()["loss"]


def test_more_classes_in_a_batch_than_there_are_are_refused(digits):
    with pytest.raises(ArgumentError, match="classes=11; digits has 10"):
        FewClasses(cell(digits, {"classes": 11}), digits).order()


@pytest.mark.parametrize(("arm", "rate"), [("bsp", 0.01), ("fedavg", 0.002), ("fedavg-skewed", 0.002)])
def test_at_full_each_worker_steps_at_the_authors_rate(arm, rate):
    """Their solvers have 0.002 for the 20 images of a worker, and synchronous ones add up to 100."""
    (options,) = EXPERIMENT.full.arms[arm]
    assert options["learning_rate"] * options["batch_sizes"][0] / 32 == pytest.approx(rate)
