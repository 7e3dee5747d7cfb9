"""The command line: exit codes and messages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import groupnorm
from groupnorm.cli import app
from groupnorm.lab.sweeps.configuration import plan
from lab.synthetic import make_run

NAME = b"r\xe9"
QUICK = ["--limit-train", "64", "--limit-val", "20", "--epochs", "1", "--seeds", "1"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("norms", ["bn", "gn", "ln", "in", "none", "Wu & He 2018"]),
        ("models", ["resnet-tiny", "resnet20", "resnet56", "resnet101", "vgg16", "package.module:factory"]),
        ("datasets", ["digits", "fashion-mnist", "cifar10", "mnist"]),
    ],
)
def test_ls_lists(kind, expected):
    result = invoke("ls", kind)
    assert result.exit_code == 0
    for name in expected:
        assert name in result.output


def test_doctor_says_what_there_is_and_why_not():
    result = invoke("doctor")
    assert result.exit_code == 0
    for name in ("groupnorm", "torch", "cuda", "cores", "torchvision", "data folder"):
        assert name in result.output


def test_a_wrong_configuration_ends_with_2_and_all_problems(tmp_path):
    result = invoke("compare", "--norms", "gm", "--model", "resnet-tin", "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 2
    assert "did you mean 'gn'" in result.output
    assert "did you mean 'resnet-tiny'" in result.output
    assert not (tmp_path / "run").exists(), "nothing is written before the configuration holds"


def test_a_name_between_colons_is_no_emoji(tmp_path, monkeypatch):
    """``module:one: ...`` was shown as ``module1️⃣ ...``."""
    code = "import numpy as np; x = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)\n"
    code += "def one(): return (x, np.zeros(4, int)) * 2"
    (tmp_path / "some_data.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    result = invoke("compare", "--dataset", "some_data:one", "--out", str(tmp_path / "run"))
    assert "some_data:one: train_labels holds 0 only" in result.output
    consoles = [p for p in Path(groupnorm.__file__).parent.rglob("*.py") if "Console(" in p.read_text()]
    made = [made for p in consoles for made in re.findall(r"(?<!import )Console\(.*", p.read_text())]
    assert made
    assert [one for one in made if "emoji=False" not in one] == []


def test_a_diverged_cell_is_a_result_and_ends_with_1(tmp_path):
    options = ["--norms", "none,gn", "--batch-sizes", "16", "--learning-rate", "100000000", "--out", tmp_path, *QUICK]
    result = invoke("compare", *options)
    assert result.exit_code == 1
    assert "diverged: the training loss became" in result.output
    assert (tmp_path / "report.html").exists()


def test_a_crashing_model_is_a_result_and_ends_with_1(tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if self.training: raise RuntimeError('my own bug')\n"
        "        return super().forward(x)\n"
        "def make(norm_layer):\n"
        "    return Net(nn.Conv2d(1, 8, 3), norm_layer(8), nn.Flatten(), nn.Linear(288, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    result = invoke(
        "compare", "--model", "crashing:make", "--norms", "gn", "--batch-sizes", "16", "--out", "run", *QUICK
    )
    assert result.exit_code == 1
    assert "crashed: RuntimeError: my own bug" in result.output
    (log,) = (tmp_path / "run").glob("cells/*/log.txt")
    assert "Traceback" in log.read_text()


def test_report_writes_again_what_compare_wrote(tmp_path):
    assert invoke("compare", "--norms", "gn", "--batch-sizes", "16", "--out", tmp_path, *QUICK).exit_code == 0
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    result = invoke("report", tmp_path)
    assert result.exit_code == 0
    assert (tmp_path / "report.html").read_bytes() == before


UNREADABLE = """
import os
from torch import nn
class Net(nn.Sequential):
    def forward(self, x):
        if self.training: raise RuntimeError("no file " + os.fsdecode(b"caf\\xe9.png"))
        return super().forward(x)
def make(norm_layer):
    return Net(nn.Conv2d(1, 8, 3), norm_layer(8), nn.Flatten(), nn.Linear(288, 10))
"""


def test_a_message_that_is_not_utf_8_takes_no_report(tmp_path, monkeypatch):
    """Neither of this run nor of one that an older version recorded, nor in a folder with such a name."""
    (tmp_path / "unreadable.py").write_text(UNREADABLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    options = ["--model=unreadable:make", "--norms=gn", "--batch-sizes=16", f"--out={os.fsdecode(NAME)}", *QUICK]

    def run(*arguments):
        command = [sys.executable, "-m", "groupnorm.cli", *arguments]
        return subprocess.run(command, capture_output=True, timeout=120)

    compared = run("compare", *options)
    assert compared.returncode == 1
    assert b"crashed: RuntimeError: no file caf\\udce9.png" in compared.stderr
    (records,) = (tmp_path / os.fsdecode(NAME)).glob("cells/*/records.jsonl")
    records.write_text(records.read_text().replace("\\\\udce9", "\\udce9"))
    reported = run("report", os.fsdecode(NAME))
    assert reported.returncode == 0, reported.stderr
    assert b"Report: r\\udce9/report.html" in reported.stdout
    assert "no file caf\\udce9.png" in (tmp_path / os.fsdecode(NAME) / "report.html").read_text()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda request: request | {"cells": {}}, "it holds no list of cells; expected cells as this version"),
        (lambda request: request | {"cells": ["gn"]}, "cell 0: Input should be a valid dictionary or instance of Cell"),
        (
            lambda request: request | {"cells": [request["cells"][0] | {"of_tomorrow": 1}]},
            "cell 0: of_tomorrow: Extra inputs are not permitted; expected cells as this version of groupnorm writes",
        ),
        (lambda request: request | {"cells": [request["cells"][0] | {"seed": "x"}]}, "cell 0: seed: Input should be"),
        (lambda request: request | {"dataset": "digits"}, "dataset is 'digits'; expected a dictionary"),
        (lambda request: [], "is damaged; expected a request with cells"),
    ],
)
def test_report_of_a_request_of_another_form_ends_with_2(tmp_path, edit, message):
    path = make_run(tmp_path, norms=("gn",), batch_sizes=(32,), seeds=1).folder / "run.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    result = invoke("report", tmp_path)
    assert result.exit_code == 2
    assert f"{path}" in result.output
    assert message in result.output


def test_records_of_another_form_end_report_and_compare_with_2(tmp_path):
    options = {"norms": "gn", "batch_sizes": 16, "seeds": 1, "limit_train": 64, "limit_val": 20, "device": "cpu"}
    comparison, dataset = plan(**options)
    make_run(tmp_path, cells=comparison.cells(dataset.digest))
    (path,) = tmp_path.glob("cells/*/records.jsonl")
    path.write_text(path.read_text().replace('"error"', '"wrong"'))
    before = path.read_bytes()
    asked = [
        f"--{name.replace('_', '-')}={value}" for name, value in {**options, "norms": "gn", "batch_sizes": 16}.items()
    ]
    for arguments in (["report", tmp_path], ["compare", *asked, "--out", tmp_path]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "line 2: 'error' of an epoch is None; expected a finite number" in result.output
    assert path.read_bytes() == before


def test_report_of_a_folder_without_a_run_ends_with_2(tmp_path):
    result = invoke("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no run.json" in result.output


def test_several_normalization_batches_are_the_columns(tmp_path):
    options = ["--norms", "bn", "--batch-sizes", "16", "--normalization-batch", "16,2", "--out", tmp_path, *QUICK]
    result = invoke("compare", *options)
    assert result.exit_code == 0, result.output
    assert "validation error (%) over normalization batch" in result.output
