"""What bounds each case, on results that are known."""

import pytest

from bench.synthetic import of_kernels, on_cpu, results
from groupnorm.bench.bounds import ARITHMETIC, CALL, EVERY, MEMORY, MEMORY_AGAIN, bounds
from groupnorm.bench.cases import listed
from groupnorm.bench.measure import BOTH, FORWARD, WARM

FITTING = sum(case.group_bytes <= 2 << 20 for case in listed())
REST = len(listed()) - FITTING


def found(**kernels):
    """Torch takes 2.5 and 3.5 ms, a copy 0.8 and 0.5 ms; the kernels what is told."""
    made = results(None)
    made["cases"].update({case.key: on_cpu() for case in listed()})
    if kernels:
        made["rates"].update(of_kernels(**kernels))
    return made


def rows(**kernels):
    every = {(row.phase, row.what): row[2:] for row in bounds(found(**kernels))}
    for phase in (FORWARD, BOTH):
        assert every.pop((phase, EVERY))[0] == len(listed())
    return every


def test_bytes_where_the_rest_takes_no_time():
    assert rows(call=1e-4, element=0) == {
        (FORWARD, MEMORY): pytest.approx((FITTING, 2.5, 2.5 / (0.8 + 0.1), 2.5 / 0.8)),
        (FORWARD, MEMORY_AGAIN): pytest.approx((REST, 2.5, 2.5 / (1.2 + 0.1), 2.5 / 0.8)),
        (BOTH, MEMORY): pytest.approx((FITTING, 3.5, 3.5 / (1.25 + 0.1), 3.5 / 1.25)),
        (BOTH, MEMORY_AGAIN): pytest.approx((REST, 3.5, 3.5 / (2.0 + 0.1), 3.5 / 1.25)),
    }


def test_the_call_where_it_takes_longer_than_the_bytes():
    slow = rows(call=1e-3, element=0)
    assert slow[FORWARD, CALL] == pytest.approx((FITTING, 2.5, 2.5 / 1.8, 2.5 / 0.8))
    assert (BOTH, CALL) not in slow, "more bytes move there"


def test_arithmetic_where_it_takes_longer_than_the_bytes():
    found_arithmetic = rows(call=0, element=1)
    assert {what for _, what in found_arithmetic} == {ARITHMETIC}
    assert found_arithmetic[FORWARD, ARITHMETIC][0] == len(listed())


def test_nothing_where_it_was_not_measured():
    assert bounds(found()) == []
    cold = found(call=1e-4, element=0)
    for entry in cold["cases"].values():
        del entry["timings"][FORWARD + WARM]
    assert {row.phase for row in bounds(cold)} == {BOTH}
