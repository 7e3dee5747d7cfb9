"""A case is checked, then timed; what is wrong gets no time."""

import pytest
import torch

import groupnorm
from groupnorm.bench import accuracy, calls, rates
from groupnorm.bench import measure as module
from groupnorm.bench.accuracy import hostile, kept
from groupnorm.bench.cases import Case, Shape
from groupnorm.bench.check import refusal
from groupnorm.bench.contenders import OURS, PEERS, TORCH, contenders, eager
from groupnorm.bench.measure import BACKWARD, BOTH, FORWARD, WARM, measure
from groupnorm.ops import cpu

CASE = Case(Shape((2, 8, 16, 16), 4), "fp32", "contiguous", "silu")


def off(case):
    return lambda x, w, b: eager(case)(x, w, b) * 1.001


def crashing(case):
    raise RuntimeError("no kernel\nfor this")


def everyone(**others):
    """Ours and torch, and who else takes part or is exchanged."""
    every = contenders([], "cpu")
    return every | {name: every.get(name, PEERS[TORCH])._replace(name=name, make=make) for name, make in others.items()}


def test_a_case_has_every_figure():
    entry = measure(CASE, everyone(peer=eager), "cpu", 0.0)
    assert entry["status"] == "measured"
    assert entry["out"] == {}
    assert set(entry["timings"]) >= {FORWARD, FORWARD + WARM, BOTH}
    assert set(entry["timings"][FORWARD]["ratios"]) == {"torch", "peer"}
    for phase, passes in ((FORWARD, 2), (BOTH, 5)):
        timing = entry["timings"][phase]
        low, middle, high = timing["seconds"][OURS]
        assert 0 < low <= middle <= high
        assert timing["rounds"] == 5
        assert timing["gbs"] == pytest.approx(passes * CASE.nbytes / middle / 1e9)
    warm = entry["timings"][FORWARD + WARM]
    assert set(warm["ratios"]) == {"copy", "torch"}
    assert warm["of_copy"] == pytest.approx(warm["ratios"]["copy"])


@pytest.mark.parametrize("wrong", [off, crashing])
def test_a_wrong_kernel_of_ours_is_refused_and_not_timed(wrong):
    entry = measure(CASE, everyone(groupnorm=wrong), "cpu", 0.0)
    assert entry["status"] == "refused"
    assert entry["reason"] == entry["out"][OURS]
    assert "timings" not in entry


def test_a_wrong_kernel_of_the_package_is_refused(monkeypatch):
    norm = module.group_norm
    monkeypatch.setattr(
        "groupnorm.bench.contenders.group_norm",
        lambda x, *rest, **options: norm(x + 1e-3 * x, *rest, **options) + 0.1,
    )
    assert measure(CASE, everyone(), "cpu", 0.0)["status"] == "refused"


def test_a_wrong_peer_is_not_timed_and_the_others_are():
    entry = measure(CASE, everyone(slow=off, broken=crashing), "cpu", 0.0)
    assert entry["status"] == "measured"
    assert entry["out"]["broken"] == "RuntimeError: no kernel"
    assert entry["out"]["slow"].startswith("y is off by")
    assert set(entry["timings"][FORWARD]["ratios"]) == {"torch"}


def test_without_torch_there_is_nothing_to_compare_with():
    entry = measure(CASE, everyone(torch=crashing), "cpu", 0.0)
    assert (entry["status"], "timings" in entry) == ("skipped", False)


def test_a_case_that_does_not_fit_is_skipped(monkeypatch):
    monkeypatch.setattr(module.memory, "available", lambda device: 1000)
    entry = measure(CASE, everyone(), "cpu", 0.0)
    assert entry["status"] == "skipped"
    assert "GB are free" in entry["reason"]


@pytest.mark.skipif(not module.memory.can_keep(), reason="another allocator than glibc's")
def test_memory_is_kept_where_there_is_enough_of_it(monkeypatch):
    monkeypatch.setattr(module.memory, "available", lambda device: 15 * CASE.nbytes)
    entry = measure(CASE, everyone(), "cpu", 0.0)
    assert set(entry["timings"]) == {FORWARD, BOTH}


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
def test_what_a_call_costs():
    timings = calls.measure(0.0)["timings"]
    assert {phase: set(timing["seconds"]) for phase, timing in timings.items()} == {
        phase + after: set(calls.TITLES) for phase in (FORWARD, BOTH) for after in ("", calls.COLD)
    }
    assert all(timing["seconds"][calls.KERNEL][1] > 0 for timing in timings.values())


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
def test_what_the_kernels_take_by_themselves():
    timings = rates.measure("bf16 channels-last silu", 0.0)["timings"]
    assert list(timings) == [FORWARD, BOTH]
    for timing in timings.values():
        assert timing["seconds"].keys() == {rates.SMALL, rates.LARGE}
        assert min(timing["seconds"][rates.SMALL]) > 0


def test_the_backward_pass_alone_has_a_graph_of_its_own_each_time():
    given = module.tensors(CASE, "cpu")
    ready = module._backward(eager(CASE), given)
    first, second = (ready()() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_phases_of_a_gpu_are_against_copy_and_peers(monkeypatch):
    monkeypatch.setattr(module, "clock_of", lambda device: lambda run: float(run() is not None))
    found = module._sets_of_cuda(CASE, {OURS: eager(CASE), TORCH: eager(CASE)}, module.tensors(CASE, "cpu"), 0.0)
    assert {phase: timing["of_copy"] for phase, timing in found.items()} == {FORWARD: 1, BACKWARD: 1.5, BOTH: 2.5}
    assert all(set(timing["ratios"]) == {"torch", "copy"} for timing in found.values())


def test_liger_is_called_as_its_signature_says(monkeypatch):
    called = []

    class Function:
        @staticmethod
        def apply(x, weight, bias, channels, groups, eps):
            called.append((channels, groups, eps))
            return torch.nn.functional.group_norm(x, groups, weight, bias, eps)

    fake = type("Module", (), {"LigerGroupNormFunction": Function})
    monkeypatch.setattr("groupnorm.bench.contenders.importlib.import_module", lambda name: fake)
    entry = measure(CASE, everyone(liger=PEERS["liger"].make), "cpu", 0.0)
    assert entry["out"] == {}
    assert set(called) == {(8, 4, 1e-5)}


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
def test_hostile_input_goes_to_the_kernels():
    for shape in accuracy._SHAPES:
        x = torch.empty(shape.size, requires_grad=True)
        assert groupnorm.explain(x, shape.groups, activation="silu").chosen == "cpu"


def test_hostile_input_is_compared_and_what_is_kept_is_counted(monkeypatch):
    monkeypatch.setattr("groupnorm.bench.accuracy._SHAPES", (Shape((2, 8, 6, 6), 4),))
    found = hostile("cpu")
    assert len(found) == 4 * 3 * 2 * 2
    assert not any(entry["reason"] for entry in found.values())
    worst = found["mean 1e4, std 1: 2x8x6x6:4 fp32 contiguous none"]["errors"]
    assert refusal(worst[TORCH], {"y": 0.0, "dx": 0.0, "dweight": 0.0, "dbias": 0.0}), "torch's own error is seen"
    assert kept("cpu") == {"tensors": {OURS: 1.0, TORCH: 2.0}, "autocast": "bfloat16"}
