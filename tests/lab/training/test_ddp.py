"""Two processes that share every batch train the network that one process trains with the joined batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groupnorm.errors import SingleElementError
from groupnorm.lab import compare
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import load
from groupnorm.lab.sweeps.configuration import Comparison, ConfigurationError, plan
from groupnorm.lab.sweeps.worker import run_cells
from groupnorm.lab.training.ddp import meet, part
from groupnorm.lab.training.loop import DivergedError, Training
from lab.synthetic import TIMING
from tolerances import rounding

STEPS = 4
SCENARIOS = {
    "syncbn": {"norm": "syncbn"},
    "gn": {"norm": "gn"},
    "bn": {"norm": "bn"},
    "parts": {"norm": "bn", "normalization_batch": 4},
    "augmented": {"norm": "gn", "augment": "cifar"},
    "diverging": {"norm": "none", "learning_rate": 1e8},
    "undefined": {"norm": "in"},
}


def digits():
    return load("digits", limit_train=16 * STEPS, limit_val=40)


def cell(**changes):
    fields = {
        "dataset": "digits", "data_digest": "", "model": "resnet-tiny", "norm": "gn", "batch_size": 16,
        "normalization_batch": None, "seed": 0, "epochs": 1, "learning_rate": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "limit_train": None, "limit_val": None, "image_size": None, "device": "cpu",
        "precision": "fp32", "threads": 1,
    }  # fmt: skip
    return Cell(**{**fields, **changes})


class Precise(Training):
    """In float64, so that what differs is not the order of sums: a statistic of four elements magnifies it."""

    def build(self):
        return super().build().double()

    def inputs(self, images):
        return super().inputs(images).double()


def trained(run):
    """What an epoch gives: its record, and the state of the network after it."""
    try:
        record = run.epoch()
    except (SingleElementError, DivergedError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"record": record, "state": {name: value.clone() for name, value in run.model.state_dict().items()}}


def shares(rank, folder):
    """Train every scenario as one of two processes."""
    outcomes = {}
    for name, changes in SCENARIOS.items():
        run = Precise(cell(**changes, processes=2), digits())
        (folder / name).mkdir(exist_ok=True)
        meet(run, rank, folder / name)
        outcomes[name] = trained(run)
        part()
    torch.save(outcomes, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The outcomes of the scenarios in process 0 and in process 1."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment) for rank in (0, 1)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


ALONE = {
    "syncbn": {"norm": "bn"},
    "gn": {"norm": "gn"},
    "bn": {"norm": "bn", "normalization_batch": 8},
    "parts": {"norm": "bn", "normalization_batch": 4},
    "augmented": {"norm": "gn", "augment": "cifar"},
}
"""What one process does in place of two."""


@pytest.mark.parametrize("name", ALONE)
def test_two_processes_train_what_one_does(two, name):
    together, alone = two[0][name], trained(Precise(cell(**ALONE[name]), digits()))
    per_worker = name in ("bn", "parts")  # running statistics: one process sees every part, process 0 its own
    states = [
        {key: value.double() for key, value in outcome["state"].items() if "weight" in key or not per_worker}
        for outcome in (together, alone)
    ]
    # each step moves no weight by more than its gradient's rounding, which is less than one layer's on all its input
    largest = torch.cat([value.flatten() for value in states[1].values()])
    near = {"rtol": 0, "atol": STEPS * rounding(torch.float32, digits().batch(digits().train_images[:16]), largest)}
    torch.testing.assert_close(states[0], states[1], **near)
    assert together["record"]["loss"] == pytest.approx(alone["record"]["loss"], rel=0, abs=near["atol"])
    assert together["record"]["train_error"] == alone["record"]["train_error"]
    assert "error" in together["record"]


def test_both_processes_hold_one_network_and_the_first_alone_measures(two):
    for name in ALONE:
        first, second = (outcomes[name]["state"] for outcomes in two)
        for key, value in first.items():
            if "running" not in key:
                assert torch.equal(value, second[key]), f"{name}: {key}"
        assert "error" not in two[1][name]["record"]
        assert two[0][name]["record"]["loss"] == two[1][name]["record"]["loss"]


def test_batch_norm_without_synchronisation_has_the_statistics_of_a_part(two):
    synchronised, own = two[0]["syncbn"]["record"]["loss"], two[0]["bn"]["record"]["loss"]
    assert abs(synchronised - own) > 0.01


def test_both_processes_diverge_or_are_undefined_alike(two):
    for name, kind in {"diverging": "DivergedError: the training loss", "undefined": "SingleElementError"}.items():
        assert two[0][name]["error"].startswith(kind)
        assert two[0][name] == two[1][name]


def test_a_training_that_has_not_joined_the_others_is_refused():
    with pytest.raises(RuntimeError, match=r"shared by 2 processes.*expected join"):
        Training(cell(processes=2), digits()).epoch()


OWN = """
import os, signal
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn

class Net(nn.Sequential):
    batches = 0

    def forward(self, x):
        self.batches += self.training
        first = not dist.is_initialized() or dist.get_rank() == 0
        if not first and self.batches > STEPS and Path("kill").exists():
            os.remove("kill")
            os.kill(os.getpid(), signal.SIGKILL)
        if not first and Path("raise").exists():
            os.remove("raise")
            raise ValueError("not this time")
        if first and not self.training and self.batches and Path("measure").exists():
            raise ValueError("no measure")
        if self.training and dist.is_initialized() and Path("draws").is_dir():
            Path("draws", f"{dist.get_rank()} {self.batches}").write_text(str(float(torch.rand(()))))
        return super().forward(x)

def network(norm_layer):
    return Net(nn.Conv2d(1, 8, 3), norm_layer(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 10))
"""
OPTIONS = {
    "model": "own_shared:network", "norms": "syncbn", "batch_sizes": 16, "seeds": 1, "epochs": 2, "device": "cpu",
    "limit_train": 16 * STEPS, "limit_val": 20, "processes": 2, "progress": False,
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network of the user's own in the current folder, which fails once per file that asks for it."""
    (tmp_path / "own_shared.py").write_text(OWN.replace("STEPS", str(STEPS)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_shared", raising=False)
    for library in ("GLOO", "NCCL"):  # else they stay as process 0 sets them
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", next(n for _, n in socket.if_nameindex() if n.startswith("lo")))
    return tmp_path


def facts(folder):
    (path,) = (folder / "cells").iterdir()
    records = RunFolder(folder).cell(path.name).records()
    return [{key: value for key, value in record.items() if key not in TIMING} for record in records]


def run_here(folder):
    """Train the cell with this process as process 0, and return the status and the reason of its end."""
    comparison, dataset = plan(**{key: value for key, value in OPTIONS.items() if key != "progress"})
    raising = Path("raise").exists()
    Path("raise").unlink(missing_ok=True)  # which asks a process that trains, not the plan
    cells = comparison.cells(dataset.digest, comparison.model_digests(dataset))
    if raising:
        Path("raise").touch()
    run_cells(cells, RunFolder(folder), lambda: dataset, lambda *event: None)
    assert not torch.distributed.is_initialized()
    end = facts(folder)[-1]
    return end["status"], end["reason"]


@pytest.mark.timeout(180)
def test_each_process_draws_numbers_of_its_own(own):
    (own / "draws").mkdir()
    compare(out=own / "run", **OPTIONS | {"processes": 3, "batch_sizes": 24, "epochs": 1})
    drawn = [path.read_text() for path in (own / "draws").iterdir()]
    assert len(set(drawn)) == len(drawn) == 3 * 2


@pytest.mark.timeout(180)
def test_a_cell_whose_processes_failed_goes_on_to_the_records_of_an_unbroken_one(own):
    (own / "kill").touch()
    row = compare(out=own / "broken", **OPTIONS).table.iloc[0]
    assert (row.status, row.reason) == ("crashed", "ProcessError: process 1 of 2 was killed by SIGKILL")
    assert [record["kind"] for record in facts(own / "broken")] == ["start", "epoch", "end"]
    (own / "raise").touch()
    reason = "ProcessError: process 1 of 2 failed: ValueError: not this time"
    assert run_here(own / "broken") == ("crashed", reason)
    assert run_here(own / "broken") == ("finished", "")
    assert run_here(own / "whole") == ("finished", "")
    assert facts(own / "broken") == facts(own / "whole")


@pytest.mark.timeout(120)
def test_an_error_of_the_process_that_measures_ends_the_other_and_is_recorded(own):
    (own / "measure").touch()
    assert run_here(own / "run") == ("crashed", "ValueError: no measure")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (6, 8), "processes": 4}, "4 processes cannot share a batch of 6 equally; use one of [1, 2, 3"),
        ({"batch_sizes": 16, "normalization_batches": 16, "processes": 2}, "the 8 images that each of 2 processes"),
        ({"task": f"{__name__}:Stepping", "processes": 2}, "'Stepping' is made for one process, and processes is 2"),
    ],
)
def test_what_processes_cannot_share_is_refused(options, message):
    with pytest.raises(ConfigurationError) as caught:
        plan(limit_train=64, limit_val=20, **options)
    assert message in str(caught.value)


def test_processes_on_gpus_take_one_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes take a GPU each, and torch sees 1; use at most 1, or 'cpu'"):
        Comparison(batch_sizes=8, processes=2, device="cuda")


def test_the_part_of_a_process_is_no_normalization_batch_of_its_own():
    fields = {"norms": "bn", "batch_sizes": 16, "seeds": 1, "processes": 2}
    (plain,), (same,) = (Comparison(**fields, normalization_batches=n).cells("d") for n in ((), 8))
    assert plain == same
    assert plain.statistics_batch == 8


class Stepping(Training):
    def step(self, images, labels):
        return super().step(images, labels)


if __name__ == "__main__":
    shares(int(sys.argv[1]), Path(sys.argv[2]))
