"""``groupnorm convert``: plans and converted weights."""

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import groupnorm
from groupnorm.lab.cli import app


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
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "1 of 1 norms become gn" in invoke("my_networks:tiny").output
    found = invoke("my_networks:number")
    assert found.exit_code == 2
    assert "my_networks:number() returned int; expected an nn.Module" in found.output


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
        (["torchvision:resnet18", "--to", "ws+gn"], "no sample_input; expected an input of the model"),
        (["torchvision:resnet18", "--input", "1,3,a"], "--input '1,3,a'; expected a shape such as 1,3,224,224"),
        (["torchvision:resnet18", "--to", "in", "--input", "1,3,32,32"], "refused"),
        (["torchvision:resnet18", "--out", "x.pt"], "expected a name that ends with .safetensors"),
        (["nowhere:model"], "model 'nowhere:model' cannot be imported"),
    ],
)
def test_mistakes_end_with_2_and_a_message(arguments, message):
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert message in found.output
