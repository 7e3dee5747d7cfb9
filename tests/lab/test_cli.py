"""The command line: exit codes and messages."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from groupnorm.lab.cli import app
from lab.inline import inline

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


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder of images below the current one."""
    for split in ("train", "val"):
        for shade, name in ((60, "cat"), (190, "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (shade, i, 9)).save(tmp_path / "pets" / split / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pets"


SWEEP = ["--norms", "gn", "--batch-sizes", "4", "--epochs", "1", "--seeds", "1", "--device", "cpu"]


def test_what_is_left_out_of_a_folder_is_said(pets):
    (pets / "train" / "cat" / "old.gif").touch()
    with inline():
        result = invoke("compare", "--dataset", "folder:pets", *SWEEP)
    assert result.exit_code == 0, result.output
    assert "Data: left out: 1 *.gif\n" in result.output


def test_broken_images_are_one_list_and_end_with_2(pets):
    Image.new("RGB", (8, 9)).save(pets / "train" / "dog" / "tall.png")
    for name in ("1.png", "2.png"):
        (pets / "val" / "cat" / name).write_bytes(b"")
    result = invoke("compare", "--dataset", "folder:pets", *SWEEP)
    assert result.exit_code == 2
    for part in (
        "tall.png has ",
        "(--image-size)",
        "val/cat/1.png is not a whole",
        "val/cat/2.png is not",
    ):
        assert part in result.output
    assert "object at" not in result.output


def test_how_a_folder_is_named_and_sorted_is_said_where_users_look():
    for where in (["compare", "--help"], ["ls", "datasets"]):
        words = " ".join(invoke(*where).output.replace("│", " ").split())
        assert "folder:PATH" in words
        assert "PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg" in words


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
