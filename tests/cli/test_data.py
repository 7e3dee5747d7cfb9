"""The command line with a folder of the user's own images."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from groupnorm.cli import app
from lab.inline import inline


def invoke(*arguments):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


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
