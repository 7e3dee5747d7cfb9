"""A network of the user's own is part of a cell's identity; one of this package is not."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groupnorm.lab import compare
from groupnorm.lab.common.rng import get_state
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.experiments import ledger
from groupnorm.lab.experiments.framework.evidence import load as load_evidence
from groupnorm.lab.models import MODELS
from groupnorm.lab.models.identity import digest
from lab.inline import inline

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OWN = """
import torch, torch.nn.functional as F
from torch import nn

def scaled(x):
    return x * 1.0

class Net(nn.Module):
    width = 8

    def __init__(self, norm_layer):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, self.width, 3), norm_layer(self.width)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(self.width, 10)
        self.rate = 0.1
        self.act = lambda x: F.relu(x)
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        nn.init.normal_(self.head.weight, 0.0, 0.01)

    def extra_repr(self):
        return f"act={self.act}"

    def forward(self, x):
        y = self.pool(F.avg_pool2d(self.act(self.norm(self.conv(x))), 2))
        return self.head(scaled(y).flatten(1) + self.shift)

def make(norm_layer):
    return Net(norm_layer)
"""
CHANGES = {
    "a module": ("nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveMaxPool2d(1)"),
    "a function": ("F.avg_pool2d", "F.max_pool2d"),
    "a number of a function": ("x * 1.0", "x * 1.5"),
    "a function without numbers": ("F.relu(x)", "F.silu(x)"),
    "an attribute": ("self.rate = 0.1", "self.rate = 0.2"),
    "a shape": ("width = 8", "width = 16"),
    "how weights are drawn": ("normal_(self.head.weight, 0.0, 0.01)", "uniform_(self.head.weight, 0.0, 0.01)"),
    "the value of a buffer": ("torch.zeros(1)", "torch.ones(1)"),
    "the order of layers": ("self.norm(self.conv(x))", "self.conv(x)"),
    "what is trained": ("nn.init.normal_", "self.conv.requires_grad_(False); nn.init.normal_"),
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the user's module, with something replaced."""

    def write(old="", new=""):
        text = OWN.replace(old, new) if old else OWN
        assert not old or text != OWN
        (tmp_path / "own_network.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "own_network", raising=False)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)

    return write


def found(norm="gn"):
    return digest("own_network:make", norm, X, 10)


def test_the_same_network_has_the_same_digest_in_every_process(own, tmp_path):
    own()
    here = found()
    assert len(here) == 16
    assert found() == here
    own("    return x * 1.0", "    # a comment\n    return x*1.0")
    assert found() == here
    code = (
        "import torch; from groupnorm.lab.models.identity import digest; torch.set_num_threads(1); "
        "x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)); "
        "print(digest('own_network:make', 'gn', x, 10))"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    there = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert there.stdout.decode().strip() == here


@pytest.mark.parametrize("change", CHANGES)
def test_another_network_has_another_digest(own, change):
    own()
    before = found()
    own(*CHANGES[change])
    assert found() != before


def test_the_generators_stay_where_they_were(own):
    own()
    torch.manual_seed(7)
    before = get_state(torch.device("cpu"))
    found()
    after = get_state(torch.device("cpu"))
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])


@pytest.mark.parametrize("name", [*MODELS, "groupnorm.lab.experiments.depth:deep_resnet"])
def test_a_network_of_this_package_has_none(name):
    assert digest(name, "gn", X, 10) is None


QUICK = {"batch_sizes": 8, "seeds": 2, "epochs": 1, "limit_train": 16, "limit_val": 8, "progress": False}


def trained(folder):
    """The cells that have records."""
    return {path.parent.name for path in folder.glob("cells/*/records.jsonl")}


def test_a_changed_network_is_trained_anew_and_the_same_one_is_not(own, tmp_path):
    own()
    options = {"model": "own_network:make", "norms": "bn,gn", "out": tmp_path / "run", **QUICK}
    with inline():
        first = compare(**options)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("cells/*/records.jsonl")}
        own()
        again = compare(**options)
        assert {path: path.stat().st_mtime_ns for path in times} == times
        own("F.avg_pool2d", "F.max_pool2d")
        other = compare(**options)
    assert again.table.equals(first.table)
    assert set(other.table.status) == {"finished"}
    assert set(other.table.cell).isdisjoint(first.table.cell)
    assert trained(tmp_path / "run") == {*first.table.cell, *other.table.cell}


def test_a_network_that_changes_after_the_plan_is_the_reason_of_a_crash(own, tmp_path):
    own()
    from groupnorm.lab.sweeps import runner
    from lab.inline import schedule

    def edited(cells, run, how):
        own("F.avg_pool2d", "F.max_pool2d")
        yield from schedule(cells, run, how)

    with inline(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "schedule", edited)
        table = compare(model="own_network:make", norms="gn", out=tmp_path / "run", **QUICK).table
    assert set(table.status) == {"crashed"}
    assert table.reason.str.contains("if its code changed, start the command again").all()


KNOWN = {
    "resnet-tiny": "gn-bs16-seed0-d9c7724a",
    "groupnorm.lab.experiments.depth:deep_resnet": "gn-bs16-seed0-21cd5d32",
}


@pytest.mark.parametrize("model", KNOWN)
def test_cells_of_this_package_keep_their_names(model):
    fields = {
        "dataset": "digits", "data_digest": "0", "model": model, "norm": "gn", "batch_size": 16,
        "normalization_batch": None, "seed": 0, "epochs": 2, "learning_rate": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "limit_train": 96, "limit_val": 40, "image_size": None, "device": "cpu",
        "precision": "fp32", "threads": 1,
    }  # fmt: skip
    assert Cell(**fields).id == KNOWN[model]


@pytest.mark.parametrize("path", sorted(Path(ledger.RECORDS).glob("*.jsonl")), ids=lambda path: path.stem)
def test_committed_records_are_read_and_know_no_network(path):
    for row in load_evidence(path).rows:
        assert "model_digest" not in row["cell"]
        cell = Cell(**row["cell"])
        assert cell.model_dump(mode="json", exclude_defaults=True) == row["cell"]
        assert json.loads(cell.model_dump_json(exclude_defaults=True)) == row["cell"]
