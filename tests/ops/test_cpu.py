"""The kernels of the CPU: threads, instruction sets, sizes, and what happens where they are not there."""

import functools
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agreement import Case, assert_agrees, make_case, run
from blocks import ROOT
from groupnorm import GroupNorm, explain, functional
from groupnorm.errors import BackendError
from groupnorm.functional import ACTIVATIONS, group_norm, group_norm_statistics
from groupnorm.ops import backends, cpu, dispatch
from groupnorm.ops.backends import resolve
from groupnorm.sets import group_set

needs_cpu = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
SLICE = 32768
"""Elements of a task, as in csrc/problem.h."""


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def memory() -> int:
    """Bytes that the system could give; 0 where it does not say."""
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: *(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else 0


LAYOUTS = {"contiguous": lambda x: x, "channels last": channels_last}
by_layout = pytest.mark.parametrize("layout", LAYOUTS)


def normalised(case: Case, groups: int, activation: str | None = "silu"):
    return run(lambda x, w, b: group_norm(x, groups, w, b, activation=activation, backend="cpu"), case)


CUTS = {
    "a group in many slices": ((1, 4, 90, 1000), 1),
    "a channel in several": ((1, 3, 210, 200), 3),
    "several channels a slice": ((1, 12, 80, 90), 2),
    "fewer groups than threads": ((1, 8, 70, 71), 1),
    "many small groups": ((70, 24, 6, 7), 12),
    "fewer positions than lanes": ((50, 40, 3, 3), 4),
    "channels that fill no vector": ((3, 7, 40, 41), 7),
    "a row longer than a slice": ((2, 40_000, 2, 1), 8),
}


@needs_cpu
@by_layout
@pytest.mark.parametrize("cut", CUTS)
def test_however_the_work_is_cut_the_result_is_the_definition(cut: str, layout: str) -> None:
    shape, groups = CUTS[cut]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        plain = make_case(shape, dtype=dtype)
        case = Case(LAYOUTS[layout](plain.x), plain.weight, plain.bias, LAYOUTS[layout](plain.upstream))
        assert_agrees(normalised(case, groups), case, group_set(groups), activation="silu")


@needs_cpu
@by_layout
@pytest.mark.parametrize("cut", CUTS)
def test_the_number_of_threads_does_not_change_a_bit(cut: str, layout: str) -> None:
    shape, groups = CUTS[cut]
    plain = make_case(shape, dtype=torch.float32)
    case = Case(LAYOUTS[layout](plain.x), plain.weight, plain.bias, LAYOUTS[layout](plain.upstream))
    outcomes = []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)  # the seeded fixture puts it back
        outcomes.append(normalised(case, groups))
    for outcome in outcomes[1:]:
        for name, value in vars(outcome).items():
            assert torch.equal(value, getattr(outcomes[0], name)), name


@needs_cpu
@by_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("there", [True, False], ids=["memory that is there", "new memory"])
def test_results_that_are_larger_than_the_caches(
    there: bool, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole vectors of 64 bytes are written past them where the memory is there, and what is left over is not."""
    if there:
        monkeypatch.setattr(torch, "empty_like", torch.ones_like)
    elements = (1 << 25) // torch.finfo(dtype).bits * 8
    shape = (1, 20, elements // 20 // 400 + 1, 401)
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype)).requires_grad_()
    dy = LAYOUTS[layout](torch.randn(shape).to(dtype))
    y = group_norm(x, 5, activation="relu", backend="cpu")
    y.backward(dy)
    assert y.nbytes >= 1 << 25, "as in csrc/runs.h"
    wide = x.detach().double().requires_grad_()
    expected = torch.relu(torch.group_norm(wide, 5))
    expected.backward(dy.double())
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=near, atol=near)
    differs = (x.grad - wide.grad).abs() > near * (1 + wide.grad.abs())
    assert differs.float().mean() < 1e-5  # an element at 0, on which side of it rounding decides


@needs_cpu
@pytest.mark.skipif(memory() < 12 << 30, reason="it takes 5 GB of memory")
def test_more_elements_than_fit_31_bits() -> None:
    ramp = torch.linspace(-1, 2, 2**20).bfloat16()
    x = torch.empty(1, 4, 513, 2**20, dtype=torch.bfloat16)
    for channel in range(4):
        x[0, channel] = ramp * (channel + 1)
    last = x[0, 3, -1, -5:].double()
    mean, rstd = group_norm_statistics(x, 4)
    y = group_norm(x, 4, activation="relu", out=x)
    torch.testing.assert_close(mean[0], torch.tensor([0.5, 1.0, 1.5, 2.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(rstd[0] * torch.arange(1, 5), torch.full((4,), 2 / 3**0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(y[0, 3, -1, -5:].double(), (last - mean[0, 3]) * rstd[0, 3], rtol=1e-2, atol=0)


@needs_cpu
def test_threads_of_python_do_not_disturb_one_another() -> None:
    cases = [make_case((4, 24, 30, 31), dtype=torch.float32) for _ in range(4)]
    alone = [normalised(case, 6) for case in cases]
    together: list[list[object]] = [[] for _ in cases]

    def work(i: int) -> None:
        together[i] = [normalised(cases[i], 6) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, others in zip(alone, together, strict=True):
        assert len(others) == 10
        for other in others:
            assert all(torch.equal(value, getattr(other, name)) for name, value in vars(first).items())


@needs_cpu
def test_a_worker_that_was_forked_normalises() -> None:
    """As those of a data loader, which set one thread: those of the parent did not come along."""
    code = """
import os, torch
from groupnorm.functional import group_norm
x = torch.randn(4, 32, 64, 64)
torch.set_num_threads(2)
expected = group_norm(x, 8, backend="cpu")
if os.fork() == 0:
    torch.set_num_threads(1)
    os._exit(not torch.equal(group_norm(x, 8, backend="cpu"), expected))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@needs_cpu
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "AVX2", reason="AVX2 is what all other tests run")
def test_the_kernels_for_avx2_pass_the_same_tests() -> None:
    tests = ["tests/test_functional.py", *(f"tests/ops/test_{name}.py" for name in ("fused", "cpu", "attacks"))]
    these = "(cpu or far_out or constant) and not avx2 and not 31_bits"
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests, "-k", these]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@needs_cpu
@pytest.mark.parametrize("smaller", ["avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_kernels_of_a_smaller_instruction_set_agree_too(
    smaller: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cpu.instruction_set()
    if own == smaller or own == "avx2":
        pytest.skip(f"the processor has {own}, which all other tests run")
    monkeypatch.setattr(cpu, "instruction_set", lambda: smaller)
    monkeypatch.setattr(cpu, "_library", functools.cache(cpu._library.__wrapped__))
    for layout in LAYOUTS.values():
        plain = make_case((2, 24, 17, 19), dtype=dtype)
        case = Case(layout(plain.x), plain.weight, plain.bias, plain.upstream)
        assert_agrees(normalised(case, 4), case, group_set(4), activation="silu")


class TestWithoutThem:
    @pytest.fixture(autouse=True)
    def forget(self):
        for cached in (cpu.unavailable, resolve, backends.explain, dispatch.choose, functional._checked):
            cached.cache_clear()
        yield
        for cached in (cpu.unavailable, resolve, backends.explain, dispatch.choose, functional._checked):
            cached.cache_clear()

    def test_where_no_compiler_was_found_aten_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu, "_library_path", lambda: None)
        x = torch.randn(2, 8, 64, 64)
        explained = explain(x, 4)
        assert explained.chosen == "native"
        assert "no working C++ compiler" in explained.reasons["cpu"]
        torch.testing.assert_close(group_norm(x, 4), torch.group_norm(x, 4), rtol=0, atol=0)
        with pytest.raises(BackendError, match="install one, then the package again"):
            group_norm(x, 4, backend="cpu")

    def test_another_processor_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "VSX")
        assert "this processor's instruction set is VSX" in explain(torch.randn(2, 8, 64, 64), 4).reasons["cpu"]


def test_the_package_installs_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-q", "-w", "."]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CXX": "/bin/false"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@needs_cpu
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("residual", [False, True])
def test_one_tensor_of_the_size_of_the_input_is_kept(activation: str | None, residual: bool) -> None:
    norm = GroupNorm(4, 32, activation=activation, backend="cpu")
    x, sizes = torch.randn(2, 32, 20, 20, requires_grad=True), []

    def keep(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        norm(x, residual=torch.randn_like(x) if residual else None)
    assert sorted(sizes, reverse=True)[0] == x.numel()
    assert sum(sizes) <= x.numel() + 2 * 32 + 2 * 2 * 4


@pytest.mark.parametrize("backend", ["auto", "native", pytest.param("cpu", marks=needs_cpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_output_has_the_dtype_of_the_input(dtype: torch.dtype, backend: str) -> None:
    """After a convolution under autocast that is the half precision; scale and shift stay float32."""
    norm, x = GroupNorm(4, 32, activation="silu", backend=backend), torch.randn(2, 32, 30, 30, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    assert y.dtype == dtype
    conv = torch.nn.Conv2d(32, 32, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(conv(x.float())).dtype == torch.bfloat16
