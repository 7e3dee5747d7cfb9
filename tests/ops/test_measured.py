"""On a GPU "auto" takes ATen until the kernels were measured on its architecture: seen on devices that are fake."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import groupnorm
from groupnorm.errors import UnknownNameError
from groupnorm.ops import backends, dispatch, gpu
from groupnorm.ops.backends import COMPILED, Explanation, compiled
from groupnorm.ops.triton import measured

RIGHT = {
    "device": "NVIDIA H200",
    "driver": "580.159",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "revision": "0123456789ab",
    "date": "2026-12-31",
    "passed": 512,
    "failed": 0,
    "speed": {
        "bfloat16 contiguous activation": {"forward": 3.2, "forward+backward": 2.9},
        "float32 channels last plain": {"forward": 1.5, "forward+backward": 0.8},
    },
}
CACHED = (backends.resolve, backends.explain, dispatch.choose, dispatch._fewest_elements)
Explain = Callable[..., Explanation]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Lets this machine have a GPU of an architecture, and the package have measured some."""

    def have(architecture: str, entries: dict[str, Any]) -> None:
        monkeypatch.setattr("groupnorm.ops.triton.INTERPRETED", False)
        monkeypatch.setattr(gpu, "_architecture", lambda index: architecture)
        monkeypatch.setattr(measured, "entries", lambda: entries)
        clear()

    def clear() -> None:
        for function in CACHED:
            getattr(function, "cache_clear", lambda: None)()

    yield have
    monkeypatch.undo()
    clear()


def on_gpu(dtype: torch.dtype = torch.bfloat16, *, channels_last: bool = False, grad: bool = False) -> Tensor:
    with FakeTensorMode():
        x = torch.empty(2, 8, 16, 16, dtype=dtype, device="cuda", requires_grad=grad)
        return x.to(memory_format=torch.channels_last) if channels_last else x


def test_where_nothing_was_measured_aten_runs_and_it_is_said_how_to_ask_for_the_kernels(fake) -> None:
    fake("sm_90", {})
    explained = groupnorm.explain(on_gpu(), 4, activation="silu")
    assert explained.chosen == "native"
    assert explained.reasons["triton"] == (
        "it has not been measured on sm_90 yet: ask for it with backend='triton', or set GROUPNORM_BACKEND=triton"
    )
    assert groupnorm.explain(on_gpu(), 4, activation="silu", backend="triton").chosen == "triton"


def test_where_they_were_right_and_faster_they_run(fake) -> None:
    fake("sm_90", {"sm_90": RIGHT})
    for grad in (False, True):
        assert groupnorm.explain(on_gpu(grad=grad), 4, activation="silu").chosen == "triton"


@pytest.mark.parametrize(
    ("architecture", "x", "activation", "reason"),
    [
        ("sm_80", on_gpu(), "silu", "has not been measured on sm_80 yet"),
        ("sm_90", on_gpu(torch.float16), "silu", "not been measured on NVIDIA H200 for float16 contiguous activation"),
        ("sm_90", on_gpu(), None, "not been measured on NVIDIA H200 for bfloat16 contiguous plain"),
        (
            "sm_90",
            on_gpu(torch.float32, channels_last=True, grad=True),
            None,
            "ATen was 1.25 times as fast on NVIDIA H200 for float32 channels last plain",
        ),
    ],
    ids=["another architecture", "another dtype", "without an activation", "slower"],
)
def test_elsewhere_aten_runs_with_the_reason(fake, architecture, x, activation, reason) -> None:
    fake(architecture, {"sm_90": RIGHT})
    explained = groupnorm.explain(x, 4, activation=activation)
    assert explained.chosen == "native"
    assert reason in explained.reasons["triton"]


def test_training_and_evaluation_are_decided_apart(fake) -> None:
    fake("sm_90", {"sm_90": RIGHT})
    assert groupnorm.explain(on_gpu(torch.float32, channels_last=True), 4).chosen == "triton"
    assert groupnorm.explain(on_gpu(torch.float32, channels_last=True, grad=True), 4).chosen == "native"


def test_a_test_that_failed_rules_the_kernels_out(fake) -> None:
    fake("sm_90", {"sm_90": RIGHT | {"failed": 2}})
    explained = groupnorm.explain(on_gpu(), 4, activation="silu")
    assert explained.chosen == "native"
    assert "2 of its tests failed on NVIDIA H200" in explained.reasons["triton"]


def test_the_environment_variable_takes_the_kernels_where_they_can_run(fake, monkeypatch) -> None:
    fake("sm_90", {})
    monkeypatch.setattr(backends, "PREFERRED", "triton")
    explained = groupnorm.explain(on_gpu(), 4)
    assert explained.chosen == "triton"
    assert explained.reasons["native"] == "was not asked for: GROUPNORM_BACKEND=triton"
    assert groupnorm.explain(torch.randn(2, 8, 4), 4).chosen != "triton", "not on a CPU"
    assert groupnorm.explain(on_gpu(), 4, backend="native").chosen == "native", "a name in the code comes first"


def test_the_environment_variable_is_read_and_checked() -> None:
    code = "import torch, groupnorm; print(groupnorm.explain(torch.randn(2, 8, 4), 4).chosen)"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, env=os.environ | {"GROUPNORM_BACKEND": "reference"}, capture_output=True, text=True)
    assert out.stdout.strip() == "reference"
    out = subprocess.run(run, env=os.environ | {"GROUPNORM_BACKEND": "tritn"}, capture_output=True, text=True)
    assert "unknown backend of GROUPNORM_BACKEND 'tritn'; expected one of" in out.stderr


def test_an_unknown_name_in_the_environment_raises(monkeypatch) -> None:
    monkeypatch.setattr(backends, "PREFERRED", "tritn")
    backends.resolve.cache_clear()
    with pytest.raises(UnknownNameError, match="did you mean 'triton'"):
        groupnorm.functional.group_norm_statistics(torch.randn(2, 8, 4), 4)


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_backend_says_from_where_on_it_pays_in_a_graph(name: str) -> None:
    assert compiled(name).FEW_ELEMENTS > 0


def test_doctor_tells_what_auto_takes(fake) -> None:
    testing = pytest.importorskip("typer.testing", reason="the command line needs typer")
    from groupnorm.cli import app

    def doctor() -> str:
        return testing.CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "300"}).output

    fake("sm_90", {})
    assert "runs where it is asked for: it has not been measured on sm_90 yet" in doctor()
    fake("sm_90", {"sm_90": RIGHT | {"speed": {"float32 contiguous plain": {"forward+backward": 2.0}}}})
    assert "measured" not in doctor()


def test_the_page_tells_whether_anything_was_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "backends.md").read_text()
    assert ("No architecture has been measured yet" in page) == (json.loads(measured.FILE.read_text()) == {})


def test_every_entry_of_the_package_is_whole() -> None:
    for architecture, entry in json.loads(measured.FILE.read_text()).items():
        assert architecture.startswith(("sm_", "gfx"))
        assert set(entry) == set(RIGHT)
        assert all(set(speed) <= {measured.FORWARD, measured.BOTH} for speed in entry["speed"].values())
