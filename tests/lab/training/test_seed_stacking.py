"""Seeds trained as one network: each with the very bits that it has alone."""

import copy

import pytest
import torch
from torch import nn

from groupnorm.lab.common.store import CellFolder, RunFolder
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import load
from groupnorm.lab.sweeps.worker import run_cells
from groupnorm.lab.training import seed_stacking
from groupnorm.lab.training.loop import DivergedError, Training
from groupnorm.lab.training.seed_stacking import SEEDS, Stack, company, may_stack, stack
from lab.synthetic import TIMING


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit_train=96, limit_val=40)


@pytest.fixture(autouse=True)
def only_bits_decide(monkeypatch):
    """Also a short run is worth a trial, and in a trial the stack is always faster."""
    trial = seed_stacking._trial
    monkeypatch.setattr(seed_stacking, "_trial", lambda runs: None if trial(runs) is None else (0.0, 1.0))
    monkeypatch.setattr(seed_stacking, "_WORTHWHILE_STEPS", 1)


def cells(digits, **changes):
    fields = {
        "dataset": "digits", "data_digest": digits.digest, "model": "resnet-tiny", "norm": "gn", "batch_size": 16,
        "normalization_batch": None, "epochs": 2, "learning_rate": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "limit_train": 96, "limit_val": 40, "image_size": None, "device": "cpu",
        "precision": "fp32", "threads": 1,
    }  # fmt: skip
    return [Cell(**{**fields, **changes, "seed": seed}) for seed in range(3)]


def trainings(digits, kind=Training, **changes):
    found = []
    for cell in cells(digits, **changes):
        found.append(kind(cell, digits))
        with found[-1].rng_scope():
            pass
    return found


def untimed(record):
    return {k: v for k, v in record.items() if k not in TIMING}


def assert_same_state(a, b):
    assert seed_stacking._same(a, b)


def records(folder):
    return {
        path.name: [untimed(r) for r in RunFolder(folder).cell(path.name).records()] for path in folder.glob("cells/*")
    }


@pytest.mark.parametrize(
    ("norm", "batch", "part"),
    [("bn", 2, None), ("gn", 2, None), ("bn", 16, None), ("gn", 16, None), ("brn", 16, None), ("ws+gn", 16, None),
     ("bn", 16, 4), ("brn", 4, 2)],
)  # fmt: skip
def test_a_stack_gives_each_seed_the_bits_it_has_alone(digits, norm, batch, part):
    """Records, weights, running statistics and momentum, over two epochs."""
    options = {"norm": norm, "batch_size": batch, "normalization_batch": part}
    together = stack(runs := trainings(digits, **options))
    assert together is not None
    both = [together.epoch(), together.epoch()]
    for seed, alone in enumerate(trainings(digits, **options)):
        with alone.rng_scope():
            assert [untimed(both[epoch][seed]) for epoch in (0, 1)] == [untimed(alone.epoch()), untimed(alone.epoch())]
            mine = alone.state_dict()
        with runs[seed].rng_scope():
            assert_same_state(runs[seed].state_dict(), mine)


def test_the_network_that_pads_channels_is_stacked_too(digits):
    assert stack(trainings(digits, model="resnet20")) is not None


def test_the_trial_leaves_the_trainings_and_the_generators_where_they_were(digits):
    runs = trainings(digits, norm="bn")
    before = [copy.deepcopy(run.state_dict()) for run in runs]
    assert stack(runs) is not None
    for run, state in zip(runs, before, strict=True):
        assert_same_state(run.state_dict(), state)


class Mixing(nn.Module):
    """Its forward joins what a stack must keep apart."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x.mean()


class MixedTraining(Training):
    stackable = True

    def build(self):
        return Mixing(super().build())


class DrawingTraining(Training):
    stackable = True

    def build(self):
        return nn.Sequential(super().build(), nn.Dropout(0.5))


class OwnStep(Training):
    def step(self, images, labels):
        return super().step(images, labels)


class HookedTraining(Training):
    stackable = True

    def build(self):
        network = super().build()
        network.blocks.register_forward_hook(lambda *_: None)
        return network


@pytest.mark.parametrize("kind", [MixedTraining, DrawingTraining, OwnStep])
def test_what_would_change_by_it_is_not_stacked(digits, kind):
    assert stack(trainings(digits, kind)) is None


def test_a_container_with_hooks_runs_for_each_seed(digits):
    assert stack(trainings(digits, HookedTraining)) is not None


def test_what_is_undefined_alone_is_not_stacked(digits):
    assert stack(trainings(digits, norm="in")) is None


def test_a_slower_stack_is_not_used(digits, monkeypatch):
    monkeypatch.setattr(seed_stacking, "_trial", lambda runs: (1.0, 0.5))
    assert stack(trainings(digits)) is None


def test_short_runs_and_large_images_are_not_tried(digits, monkeypatch):
    monkeypatch.setattr(seed_stacking, "_trial", lambda runs: pytest.fail("tried"))
    monkeypatch.setattr(seed_stacking, "_POSITIONS", 3 * 16 * 64 - 1)
    assert stack(trainings(digits)) is None
    monkeypatch.setattr(seed_stacking, "_POSITIONS", 3 * 16 * 64)
    monkeypatch.setattr(seed_stacking, "_WORTHWHILE_STEPS", 13)
    assert stack(trainings(digits)) is None


def test_company_is_as_many_as_time_and_memory_allow(digits, monkeypatch):
    run = trainings(digits)[0]
    assert company(run) == SEEDS
    monkeypatch.setattr(seed_stacking, "_POSITIONS", 3 * 16 * 64)
    assert company(run) == 3
    monkeypatch.setattr(seed_stacking, "_PARAMETERS", 2 * sum(p.numel() for p in run.model.parameters()))
    assert company(run) == 2
    monkeypatch.setattr(seed_stacking, "_PARAMETERS", 1)
    assert company(run) == 1
    assert company(trainings(digits, OwnStep)[0]) == 1


def test_more_seeds_than_fit_are_trained_in_turn_with_the_same_bits(digits, tmp_path, monkeypatch):
    """Two together, then the third alone; it begins when the two have ended."""
    told: list[tuple[str, dict]] = []
    stacked: list[int] = []
    begun = CellFolder.append

    def append(folder, record):
        if record["kind"] == "start":
            told.append((folder.path.name, record))
        begun(folder, record)

    monkeypatch.setattr(CellFolder, "append", append)
    monkeypatch.setattr(seed_stacking, "SEEDS", 2)
    monkeypatch.setattr("groupnorm.lab.sweeps.worker.stack", lambda runs: stacked.append(len(runs)) or stack(runs))
    three = cells(digits, norm="bn")
    run_cells(three, RunFolder(tmp_path / "together"), lambda: digits, lambda *event: told.append(event))
    assert stacked == [2]
    first, second, third = (cell.id for cell in three)
    order = [(name, event["kind"]) for name, event in told if event["kind"] in ("start", "end")]
    assert order[:4] == [(first, "start"), (second, "start"), (first, "end"), (second, "end")]
    assert order[4:] == [(third, "start"), (third, "end")]
    for cell in three:
        run_cells([cell], RunFolder(tmp_path / "alone"), lambda: digits, lambda *event: None)
    assert records(tmp_path / "together") == records(tmp_path / "alone")


@pytest.mark.parametrize("batch", [2, 16])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_a_seed_that_diverges_leaves_the_others_their_bits(digits, norm, batch):
    def broken():
        runs = trainings(digits, norm=norm, batch_size=batch)
        nn.init.constant_(runs[1].model.conv.weight, torch.nan)
        return runs

    together = Stack(broken()).epoch()
    for seed, alone in enumerate(broken()):
        if seed == 1:
            assert isinstance(together[1], DivergedError)
            with pytest.raises(DivergedError) as error:
                alone.epoch()
            assert str(together[1]) == str(error.value)
        else:
            assert untimed(together[seed]) == untimed(alone.epoch())


def test_a_worker_records_the_same_whatever_the_company(digits, tmp_path, monkeypatch):
    """Three together; each alone; and a stack that breaks off, whose cells go on in other company."""
    three = cells(digits, norm="bn", epochs=3)
    events = []
    stacked = []
    monkeypatch.setattr("groupnorm.lab.sweeps.worker.stack", lambda runs: stacked.append(len(runs)) or stack(runs))
    run_cells(three, RunFolder(tmp_path / "together"), lambda: digits, lambda *event: events.append(event))
    assert stacked == [3]
    assert [name for name, event in events if event["kind"] == "end"] == [cell.id for cell in three]
    for cell in three:
        run_cells([cell], RunFolder(tmp_path / "alone"), lambda: digits, lambda *event: None)
    assert stacked == [3]

    class KilledError(BaseException):
        pass

    def kill_at(count):
        told = []

        def emit(cell_id, event):
            told.append(event)
            if sum(event["kind"] == "epoch" for event in told) == count:
                raise KilledError

        return emit

    broken = RunFolder(tmp_path / "broken")
    for some, epochs in ((three, 2), (three[1:], 1)):  # seeds 0 and 1 are an epoch ahead of 2; then 2 catches up
        with pytest.raises(KilledError):
            run_cells(some, broken, lambda: digits, kill_at(epochs))
    run_cells(three[::2], broken, lambda: digits, lambda *event: None)
    run_cells(three, broken, lambda: digits, lambda *event: None)
    assert records(tmp_path / "together") == records(tmp_path / "alone") == records(tmp_path / "broken")
    assert not list(tmp_path.glob("*/cells/*/checkpoint.pt"))


def test_a_stack_that_fails_goes_on_one_by_one_from_the_last_epoch(digits, tmp_path, monkeypatch):
    run_cells(cells(digits), RunFolder(tmp_path / "whole"), lambda: digits, lambda *event: None)
    epoch, calls = Stack.epoch, []

    def failing(self, on_step):
        calls.append(self)
        if len(calls) == 2:
            self.step(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, dtype=torch.int64))
            raise RuntimeError("out of luck")
        return epoch(self, on_step)

    monkeypatch.setattr(Stack, "epoch", failing)
    run_cells(cells(digits), RunFolder(tmp_path / "failing"), lambda: digits, lambda *event: None)
    assert len(calls) == 2
    assert records(tmp_path / "whole") == records(tmp_path / "failing")


def test_cells_on_a_gpu_or_in_bf16_may_not_be_stacked(digits):
    first = cells(digits)[0]
    assert may_stack(first)
    assert not may_stack(first.model_copy(update={"device": "cuda"}))
    assert not may_stack(first.model_copy(update={"precision": "bf16"}))
    assert not may_stack(first.model_copy(update={"processes": 2}))


def test_a_stack_takes_the_momentum_that_each_seed_has(digits):
    runs = trainings(digits, norm="bn")
    for run in runs:
        with run.rng_scope():
            run.epoch()
    assert stack(runs) is not None


def test_a_network_that_draws_has_its_own_draws_whatever_the_company(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("groupnorm.lab.sweeps.worker.training", DrawingTraining)
    run_cells(cells(digits), RunFolder(tmp_path / "together"), lambda: digits, lambda *event: None)
    for cell in cells(digits):
        run_cells([cell], RunFolder(tmp_path / "alone"), lambda: digits, lambda *event: None)
    assert records(tmp_path / "together") == records(tmp_path / "alone")
