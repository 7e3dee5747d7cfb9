"""Runs that stop and go on."""

from contextlib import contextmanager

import pytest
from rich.console import Console

from bench.synthetic import on_cpu, results
from groupnorm.bench import conduct, store
from groupnorm.bench.cases import Case, Shape
from groupnorm.bench.store import CASES, load

EVERY = [
    Case(Shape((2, 8, 16, 16), 4), dtype, "contiguous", act) for dtype in ("fp32", "bf16") for act in ("none", "relu")
]


class Measure:
    """Stands for a measurement, and interrupts the one after ``stop`` many."""

    def __init__(self):
        self.log, self.stop, self.others = [], None, 0.0

    def __call__(self, case, every, device, seconds):
        if len(self.log) == self.stop:
            raise KeyboardInterrupt
        self.log.append(case.key)
        return on_cpu(others=self.others) | {"errors": {name: {"y": 1.0} for name in every}}


@pytest.fixture
def measured(monkeypatch):
    found = Measure()
    monkeypatch.setattr(conduct, "measure", found)
    return found


def run(path, peers=("torch",), cases=EVERY, fresh=False, quiet=False):
    found = load(path) if path.exists() else results(path)
    conduct.run_cases(found, cases, list(peers), conduct.How(0.1, fresh, quiet, Console(quiet=True)))
    return found


def test_nothing_is_measured_twice(tmp_path, measured):
    path = tmp_path / "results" / "device.json"
    run(path, cases=EVERY[:2])
    run(path)
    assert measured.log == [case.key for case in EVERY]
    run(path, fresh=True)
    assert len(measured.log) == 2 * len(EVERY)


def test_an_interrupt_keeps_what_is_finished(tmp_path, measured):
    path = tmp_path / "device.json"
    measured.stop = 3
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert list(load(path)[CASES]) == [case.key for case in EVERY[:3]]
    measured.stop = None
    run(path)
    assert measured.log == [case.key for case in EVERY], "it went on where it stopped"


def test_another_peer_or_other_kernels_are_measured_again(tmp_path, measured, monkeypatch):
    path = tmp_path / "device.json"
    run(path)
    run(path, peers=("torch", "compile"))
    assert len(measured.log) == 2 * len(EVERY)
    run(path)
    assert len(measured.log) == 2 * len(EVERY), "what has more peers serves for fewer"
    stamp = store.stamp()
    monkeypatch.setattr(store, "stamp", lambda: stamp | {"revision": "other"})
    run(path)
    assert len(measured.log) == 2 * len(EVERY), "the same kernels in another revision"
    monkeypatch.setattr(store, "stamp", lambda: stamp | {"kernels": "other"})
    run(path)
    assert len(measured.log) == 3 * len(EVERY)


def test_a_case_that_was_skipped_is_tried_again(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(
        conduct, "measure", lambda case, *_: tried.append(case) or {"status": "skipped", "reason": "too large"}
    )
    path = tmp_path / "device.json"
    for _ in range(2):
        run(path, cases=EVERY[:1])
    assert len(tried) == 2


def test_promises_are_looked_at_with_the_listed_cases(tmp_path, measured, monkeypatch):
    looked = []
    monkeypatch.setattr(conduct.accuracy, "hostile", lambda device: looked.append(device) or {"bad: x": {"reason": ""}})
    monkeypatch.setattr(conduct.accuracy, "kept", lambda device: {"autocast": "bfloat16"})
    monkeypatch.setattr(conduct.calls, "measure", lambda seconds: looked.append(seconds) or {"timings": {}})
    monkeypatch.setattr(conduct.rates, "measure", lambda kind, seconds: {"timings": {}})
    monkeypatch.setattr(conduct.cpu, "unavailable", lambda: "")
    path = tmp_path / "device.json"
    run(path)
    assert not looked
    for _ in range(2):
        found = run(path, cases=conduct.judge.listed()[:1])
    assert looked == ["cpu", 0.1]
    assert list(found["hostile"]) == ["bad: x"]
    assert list(found["rates"]) == conduct.rates.KINDS


def test_kernels_that_an_interrupt_left_out_are_measured_by_the_next_run(tmp_path, measured, monkeypatch):
    seen = []

    def measure(kind, seconds):
        seen.append(kind)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {"timings": {}}

    monkeypatch.setattr(conduct.accuracy, "hostile", lambda device: {})
    monkeypatch.setattr(conduct.accuracy, "kept", lambda device: {})
    monkeypatch.setattr(conduct.calls, "measure", lambda seconds: {"timings": {}})
    monkeypatch.setattr(conduct.rates, "measure", measure)
    monkeypatch.setattr(conduct.cpu, "unavailable", lambda: "")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "device.json", cases=conduct.judge.listed()[:1])
    found = run(tmp_path / "device.json", cases=conduct.judge.listed()[:1])
    kinds = conduct.rates.KINDS
    assert seen == [*kinds[:3], *kinds[2:]], "nothing finished is measured again"
    assert list(found["rates"]) == kinds


def test_what_was_disturbed_is_measured_again_when_the_machine_is_quiet(tmp_path, measured, monkeypatch):
    path = tmp_path / "device.json"
    busy = iter([1.5, 0.4, 0.1])

    @contextmanager
    def watching():
        yield {"others": next(busy)}

    monkeypatch.setattr(conduct, "watching_others", watching)
    monkeypatch.setattr(conduct, "_LOOK", 0.0)
    measured.others = 0.9
    for _ in range(2):
        run(path, cases=EVERY[:1])
    assert len(measured.log) == 1
    measured.others = 0.0
    for _ in range(2):
        run(path, cases=EVERY[:1], quiet=True)
    assert len(measured.log) == 2
    assert next(busy, None) is None, "it waited until it was quiet"
