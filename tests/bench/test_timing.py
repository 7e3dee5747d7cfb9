"""Rounds, their order, and the figures of times that are known."""

import itertools
from collections import Counter

import pytest

from groupnorm.bench import timing
from groupnorm.bench.timing import figures, order, rounds, wall_clock, warm_up


def test_everyone_runs_once_in_each_round_and_in_every_place():
    names = ["a", "b", "c"]
    every = [order(names, number) for number in range(6)]
    assert all(sorted(one) == names for one in every)
    for place in range(3):
        assert Counter(one[place] for one in every) == dict.fromkeys(names, 2)
    followers = Counter((x, y) for one in every for x, y in itertools.pairwise(one))
    assert followers["a", "b"] == followers["b", "a"], "the order turns around"


def test_rounds_are_interleaved():
    log = []
    runs = {name: lambda name=name: lambda: log.append(name) for name in "ab"}
    times = rounds(runs, wall_clock, 0.0)
    assert {name: len(own) for name, own in times.items()} == {"a": 5, "b": 5}
    assert "".join(log) == "abba" + "baab" + "ab"


@pytest.mark.parametrize(
    ("each", "seconds", "expected"),
    [(0.001, 0.1, 50), (0.1, 0.1, 5), (4.0, 0.1, 5), (6.0, 0.1, 3), (1e-6, 100.0, timing.MOST)],
)
def test_the_number_of_rounds(each, seconds, expected, monkeypatch):
    now = [0.0]

    def clock(run):
        now[0] += each
        return each

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    times = rounds({"a": lambda: print, "b": lambda: print}, clock, seconds)
    assert abs(len(times["a"]) - expected) <= 1


def test_what_makes_a_run_ready_is_not_timed():
    ready, ran = [], []
    runs = {"a": lambda: ready.append(1) or (lambda: ran.append(1))}
    rounds(runs, lambda run: 1.0, 0.0)
    assert (len(ready), len(ran)) == (5, 0), "only the clock runs it"
    rounds(runs, lambda run: run() or 1.0, 0.0)
    assert (len(ready), len(ran)) == (10, 5)


@pytest.mark.parametrize(("each", "seconds", "expected"), [(0.1, 1.0, 10), (0.1, 0.0, 2), (11.0, 1.0, 1)])
def test_the_number_of_rounds_that_are_not_counted(each, seconds, expected, monkeypatch):
    now, ran = [0.0], []

    def clock(run):
        ran.append(run)
        now[0] += each
        return each

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    warm_up({"a": lambda: print}, clock, seconds)
    assert abs(len(ran) - expected) <= (expected > 2)


def test_figures_of_known_times():
    times = {"ours": [1.0, 2.0, 3.0, 4.0, 100.0], "torch": [2.0, 6.0, 6.0, 12.0, 300.0]}
    found = figures(times, "ours")
    assert found["rounds"] == 5
    assert found["seconds"]["ours"] == pytest.approx([1.8, 3.0, 23.2])
    assert found["ratios"] == {"torch": 3.0}, "the median of 2, 3, 2, 3 and 3, not the ratio of the medians, which is 2"
