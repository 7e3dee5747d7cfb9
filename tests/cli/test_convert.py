"""``groupnorm convert``: plans and converted weights."""

import os
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import groupnorm
from groupnorm.cli import app


def invoke(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "160"})


def test_a_plan_touches_nothing(tmp_path):
    found = invoke("torchvision:resnet18", "--to", "ws+gn", "--input", "1,3,64,64", "--plan", "--out", tmp_path / "w")
    assert found.exit_code == 0
    assert "20 of 20 norms become ws+gn; 20 lose running statistics" in found.output
    assert "ws+gn:32" in found.output
    assert not list(tmp_path.iterdir())


def test_a_plan_for_machines():
    found = invoke("timm:resnet10t", "--groups", "c16", "--where", "layer1.*", "--where", "bn1", "--json")
    plan = groupnorm.Plan.from_json(found.output)
    rows = plan.of("replace")
    assert [row.path for row in rows] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    assert all(row.channels == 16 * row.number for row in rows)
    assert plan.to == "gn"


def test_a_factory_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def tiny():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))\n"
        "def number():\n    return 5\n"
        "def broken():\n    raise KeyError('width')\n"
        "def needs(width):\n    return nn.Identity()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "1 of 1 norms become gn" in invoke("my_networks:tiny").output
    found = invoke("my_networks:number")
    assert found.exit_code == 2
    assert "my_networks:number() returned int; expected an nn.Module" in found.output
    for name, message in (("broken", "failed: KeyError: 'width'"), ("needs", "missing 1 required positional argument")):
        found = invoke(f"my_networks:{name}")
        assert found.exit_code == 2
        assert message in found.output


def test_weights_go_through(tmp_path):
    model = torchvision.models.resnet18()
    save_file(model.state_dict(), tmp_path / "bn.safetensors")
    torch.save(model.state_dict(), tmp_path / "bn.pt")
    expected = groupnorm.convert(model, "gn:8").state_dict()
    for name in ("bn.safetensors", "bn.pt"):
        out = tmp_path / "gn.safetensors"
        found = invoke("torchvision:resnet18", "--to", "gn:8", "--checkpoint", tmp_path / name, "--out", out)
        assert found.exit_code == 0, found.output
        assert f"20 gn:8\nWeights: {out}" in found.output
        assert "122 keys loaded" in found.output
        written = load_file(out)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[key], value) for key, value in expected.items())
        out.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"bn.safetensors", "bn.pt"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "model 'resnet18'; expected torchvision:NAME"),
        (["torchvision:resnet19"], "did you mean 'resnet"),
        (["timm:nothing"], "unknown model of timm 'nothing'"),
        (["torchvision:resnet18", "--to", "ws+gn"], "--to ws+gn and no --input; expected the shape"),
        (["torchvision:resnet18", "--input", "1,3,a"], "--input '1,3,a'; expected a shape such as 1,3,224,224"),
        (["torchvision:resnet18", "--to", "in", "--input", "1,3,32,32"], "refused"),
        (["torchvision:resnet18", "--out", "x.bin"], "expected a name that ends with .safetensors, or .pt"),
        (["torchvision:resnet18", "--out", "/proc/x.safetensors"], "--out /proc/x.safetensors cannot be written: "),
        (["torchvision:resnet18", "--out", "/proc/x.pt"], "--out /proc/x.pt cannot be written: "),
        (
            ["torchvision:resnet18", "--input", "1000000,3,100000,100000", "--plan"],
            "has more numbers than the memory",
        ),
        (
            ["torchvision:resnet18", "--input", "9999999999999999999,3", "--plan"],
            "has more numbers than the memory",
        ),
        (["torchvision:resnet18", "--input", "1,0,8,8"], "expected a shape such as 1,3,224,224"),
        (["torchvision:resnet18", "--input", "1,4,32,32"], "running sample_input through the model failed"),
        (["torchvision:resnet18", "--where", "layr1.*"], "did you mean 'layer1.*'"),
        (["torchvision:resnet18", "--checkpoint", "nowhere.pt"], "--checkpoint nowhere.pt is no file"),
        (["torchvision:resnet18", "--out", "."], "--out . is a folder; expected a file: use --out weights.safetensors"),
        (["torchvision:resnet18", "--out", "nowhere/x.safetensors"], "make nowhere first"),
        (["nowhere:model"], "model 'nowhere:model' cannot be imported"),
    ],
)
def test_mistakes_end_with_2_and_a_message(arguments, message):
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert message in found.output


@pytest.mark.parametrize("name", ["garbage.pt", "garbage.safetensors", "list.pt"])
def test_a_checkpoint_that_is_none_is_told(tmp_path, name):
    (tmp_path / name).write_text("no weights")
    if name == "list.pt":
        torch.save([1, 2], tmp_path / name)
    found = invoke("torchvision:resnet18", "--checkpoint", tmp_path / name)
    assert found.exit_code == 2
    assert ("holds no state dict" if name == "list.pt" else "cannot be read") in found.output
    assert isinstance(found.exception, SystemExit)


@pytest.mark.parametrize("options", [["--where", "nothing"], ["--to", "bn"]])
def test_weights_that_were_not_converted_are_not_written(tmp_path, options):
    found = invoke("torchvision:resnet18", *options, "--out", tmp_path / "x.safetensors")
    assert found.exit_code == 2
    assert "fits no norm" in found.output or "0 of 20 norms become bn, 20 left alone" in found.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_full_disk_ends_with_a_message_and_leaves_nothing(tmp_path, monkeypatch, name):
    def full(model, path):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def also_full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groupnorm.cli.convert.save_model", full)
    monkeypatch.setattr("pathlib.Path.write_bytes", also_full) if name == "x.pt" else None
    found = invoke("torchvision:resnet18", "--out", tmp_path / name)
    assert found.exit_code == 2
    assert "cannot be written: " in found.output
    assert "No space left on device" in found.output
    assert "expected a folder to write in, with space" in found.output
    assert not list(tmp_path.iterdir())


def test_state_that_is_no_tensor_goes_to_a_file_of_torch(tmp_path):
    options = ("torchvision:resnet18", "--to", "cbn", "--input", "1,3,64,64", "--out")
    found = invoke(*options, tmp_path / "x.safetensors")
    assert found.exit_code == 2
    assert "cannot hold bn1._extra_state, a dict, for safetensors has tensors alone" in found.output
    assert f"use --out {tmp_path / 'x.pt'}" in found.output
    assert invoke(*options, tmp_path / "x.pt").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    images = torch.randn(1, 3, 64, 64)
    model = groupnorm.convert(torchvision.models.resnet18(), "cbn", sample_input=images)
    model.load_state_dict(torch.load(tmp_path / "x.pt"))
    assert "load" in invoke("torchvision:resnet18", "--checkpoint", tmp_path / "x.pt").output


def test_weights_without_a_checkpoint_are_said_to_be_random(tmp_path):
    said = "The weights of torchvision:resnet18 are random: name trained ones with --checkpoint."
    found = invoke("torchvision:resnet18", "--out", tmp_path / "x.safetensors")
    assert said in found.stderr
    assert said not in found.stdout
    again = invoke("torchvision:resnet18", "--checkpoint", tmp_path / "x.safetensors", "--out", tmp_path / "y.pt")
    assert said not in again.stderr
    assert said not in invoke("torchvision:resnet18").stderr


def test_a_detector_is_made_without_a_download(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", load)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    found = invoke("torchvision:fcn_resnet50", "--to", "gn")
    assert found.exit_code == 0, found.output


def test_a_file_with_tied_weights_loads_again(tmp_path, monkeypatch):
    (tmp_path / "tied_network.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))\n"
        "    net[2].weight = net[0].weight\n"
        "    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert invoke("tied_network:make", "--out", tmp_path / "x.safetensors").exit_code == 0
    assert len(load_file(tmp_path / "x.safetensors")) == 5
    found = invoke("tied_network:make", "--checkpoint", tmp_path / "x.safetensors")
    assert found.exit_code == 0
    assert "6 keys loaded" in found.output


def test_a_checkpoint_that_holds_state_dicts_is_told_with_a_remedy_for_the_file(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "x.pt")
    found = invoke("torchvision:resnet18", "--checkpoint", tmp_path / "x.pt")
    assert found.exit_code == 2
    assert "holds state dicts under ['state_dict']; expected the one of the model alone" in found.output
    assert "torch.save(torch.load(" in found.output
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "y.pt")
    found = invoke("torchvision:resnet18", "--checkpoint", tmp_path / "y.pt")
    assert found.exit_code == 2
    assert f"--checkpoint {tmp_path / 'y.pt'}: the checkpoint has" in found.output
    assert "write it with torch.save)" in found.output


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_link_that_was_planted_is_not_followed(tmp_path, name):
    """Whoever may write to the folder could guess the name of a temporary file."""
    target = tmp_path / "kept"
    target.write_text("kept")
    (tmp_path / f".{name}.{os.getpid()}").symlink_to(target)
    assert invoke("torchvision:resnet18", "--out", tmp_path / name).exit_code == 0
    assert target.read_text() == "kept"
    assert (tmp_path / name).is_file()
