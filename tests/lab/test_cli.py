"""The command line: exit codes and messages."""

import pytest
from typer.testing import CliRunner

from groupnorm.lab.cli import app

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
        "    return Net(nn.Flatten(), nn.Linear(64, 10))\n"
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


def test_report_of_a_folder_without_a_run_ends_with_2(tmp_path):
    result = invoke("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no run.json" in result.output


def test_several_normalization_batches_are_the_columns(tmp_path):
    options = ["--norms", "bn", "--batch-sizes", "16", "--normalization-batch", "16,2", "--out", tmp_path, *QUICK]
    result = invoke("compare", *options)
    assert result.exit_code == 0, result.output
    assert "validation error (%) over normalization batch" in result.output
