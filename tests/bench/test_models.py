"""Whole models: outputs and gradients before any timing."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.bench import diffusion, networks, steps
from groupnorm.bench.networks import NETWORKS, Network


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 8, 3))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", Network("tiny", "torch", tiny, [(2, 3, 12, 12)]))
    monkeypatch.setattr(steps, "_peak", lambda *_: 1000)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_is_measured(dtype: str) -> None:
    entry = steps.measure("tiny", dtype, "cpu", 1, 0.0)
    assert entry["status"] == "measured"
    assert entry["norms"] == "1 of 1 norms become groupnorm.GroupNorm"
    for step in ("inference", "training step"):
        assert set(entry["timings"][step]["ratios"]) == {"before", "free"}
        assert entry["memory"][step] == {"before": 1000, "after": 1000}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda y: y * 1.01, "the output is off"),
        (lambda y: y.detach() + (y - y.detach()) * 1.01, "the gradients is off"),
        (lambda y: y * float("nan"), "the output is off"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(
    wrong: Callable[[torch.Tensor], torch.Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerate = steps.groupnorm.accelerate_

    def off(model: nn.Module) -> object:
        report = accelerate(model)
        model.register_forward_hook(lambda module, inputs, y: wrong(y))
        return report

    monkeypatch.setattr(steps.groupnorm, "accelerate_", off)
    entry = steps.measure("tiny", "fp32", "cpu", 1, 0.0)
    assert entry["status"] == "refused"
    assert reason in entry["reason"]
    assert "timings" not in entry


def test_the_peak_is_measured_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    steps._main("tiny", "fp32", "cpu", 1, "training step", "after")
    peak = json.loads(capsys.readouterr().out)
    assert peak is None or peak >= 0


def test_the_networks_of_a_gpu_have_the_sizes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        decoder, unet = diffusion.Decoder(), diffusion.UNet()
        assert decoder(torch.empty(1, 4, 8, 8)).shape == (1, 3, 64, 64)
        assert unet(torch.empty(2, 4, 16, 16), torch.empty(2), torch.empty(2, 7, 768)).shape == (2, 4, 16, 16)
    numbers = [sum(p.numel() for p in network.parameters()) for network in (decoder, unet)]
    assert numbers == [49_490_179, 859_520_964], "as diffusers has them"
    norms = [sum(isinstance(module, nn.GroupNorm) for module in network.modules()) for network in (decoder, unet)]
    assert norms == [30, 61]


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (diffusion.Decoder((32, 64)), [torch.randn(1, 4, 6, 6)]),
        (diffusion.UNet((32, 64), 16), [torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 16)]),
    ],
    ids=["decoder", "unet"],
)
def test_every_activation_of_such_a_network_is_taken_over(network: nn.Module, inputs: list[torch.Tensor]) -> None:
    expected = network(*inputs)
    plan = groupnorm.accelerate_(network).plan
    assert {row.new for row in plan.rows if row.action == "replace"} == {"gn+silu", "gn"}
    torch.testing.assert_close(network(*inputs), expected)


def test_a_library_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert networks.absence("tiny") == ""
    monkeypatch.setitem(NETWORKS, "tiny", NETWORKS["tiny"]._replace(library="not_there"))
    assert networks.absence("tiny") == "not_there is not installed: pip install not_there"


def test_the_networks_are_the_same_each_time_and_keep_the_seed() -> None:
    before = torch.random.get_rng_state()
    (first, x), (second, again) = (networks.build("tiny", torch.bfloat16, "cpu") for _ in range(2))
    assert torch.equal(x[0], again[0])
    assert torch.equal(first[0].weight, second[0].weight)
    assert torch.equal(torch.random.get_rng_state(), before)
