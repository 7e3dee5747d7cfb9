"""What a worker records of data and networks of the user's own."""

import sys

import pytest

from groupnorm.lab import compare

QUICK = {"norms": "none", "batch_sizes": 8, "seeds": 1, "epochs": 1, "progress": False}
OWN = """
import os, sys, torch
from torch import nn

def changing():
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    return images, labels, images, labels

class Net(nn.Sequential):
    def forward(self, x):
        print("a line of the user's own", flush=True)
        if self.training and BAD:
            exec(BAD)
        return super().forward(x)

def network(norm_layer):
    return Net(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the user's module where a worker finds it."""

    def write(bad=""):
        (tmp_path / "own_module.py").write_text(f"BAD = {bad!r}\n{OWN}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "own_module", raising=False)

    return write


def test_data_that_changes_from_call_to_call_is_refused(own, tmp_path):
    own()
    row = compare(dataset="own_module:changing", model="own_module:network", out=tmp_path / "run", **QUICK).table.iloc[
        0
    ]
    assert row.status == "crashed"
    assert "a function must return the same data every time" in row.reason


def test_what_a_network_prints_goes_to_the_log_of_its_cell(own, tmp_path):
    own()
    table = compare(model="own_module:network", out=tmp_path / "run", limit_train=16, limit_val=8, **QUICK).table
    assert table.status.tolist() == ["finished"]
    (log,) = (tmp_path / "run").glob("cells/*/log.txt")
    assert "a line of the user's own" in log.read_text()


def test_a_worker_imports_what_its_parent_can(own, tmp_path, monkeypatch):
    own()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path)
    table = compare(model="own_module:network", out=tmp_path / "run", limit_train=16, limit_val=8, **QUICK).table
    assert table.status.tolist() == ["finished"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("sys.exit(3)", "SystemExit: 3"),
        ("os._exit(3)", "the worker ended with exit code 3"),
        ("input()", "EOFError"),
        ("os.fork() or __import__('time').sleep(300); os._exit(4)", "the worker ended with exit code 4"),
    ],
)
def test_a_network_that_ends_the_process_is_a_crashed_cell(own, tmp_path, bad, reason):
    own(bad)
    row = compare(model="own_module:network", out=tmp_path / "run", limit_train=16, limit_val=8, **QUICK).table.iloc[0]
    assert row.status == "crashed"
    assert reason in row.reason
