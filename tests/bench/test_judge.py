"""The targets, on results that are known."""

import pytest

from bench.synthetic import GPU, on_cpu, on_gpu, results
from groupnorm.bench.cases import listed
from groupnorm.bench.judge import MET, MET_SO_FAR, MISSED, MISSED_SO_FAR, NOT_MEASURED, judge, losses

CASES = listed()


def judged(entries, machine=None):
    found = results(None) if machine is None else results(None, machine)
    found["cases"].update(entries)
    return judge(found)


def verdicts(entries, machine=None):
    return [row.verdict for row in judged(entries, machine)]


def everywhere(make, **one):
    """All cases alike, but the first of those in ``one``, which has other numbers."""
    entries = {case.key: make() for case in CASES}
    for key, numbers in one.items():
        entries[key] = make(**numbers)
    return entries


def test_a_fast_cpu_meets_all():
    entries = everywhere(on_cpu)
    found = judged(entries)
    assert [row.verdict for row in found[:6]] == [MET] * 6
    assert found[0].found.startswith("2.50x over 162 of 162 timings; 2.50x over 162 in memory that is there, ")
    assert found[0].found.endswith("would reach 3.12x"), "torch takes 2.5 times our time, and a copy 0.8 times"
    assert found[1].found.endswith("would reach 2.80x"), "five passes are two copies and a half"
    assert "1.25 copies at worst" in found[3].found
    assert found[5].found == "162 of 162 cases"


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [
        ({"forward": 1.9}, [0]),
        ({"both": 2.9}, [1]),
        ({"forward": 0.9}, [0, 2]),
        ({"copied": 1 / 1.6}, [3]),
        ({"copied_both": 1 / 3.6}, [4]),
    ],
)
def test_each_target_can_be_missed(numbers, missed):
    found = verdicts({case.key: on_cpu(**numbers) for case in CASES})
    assert [index for index in range(6) if found[index] == MISSED] == missed


def test_one_slow_case_is_found_and_named():
    slow = CASES[17]
    found = judged(everywhere(on_cpu, **{slow.key: {"both": 0.94}}))[2]
    assert found.verdict == MISSED
    assert f"0.94x at worst, {slow.key} forward+backward" in found.found
    assert "missed by 1" in found.found
    assert judged(everywhere(on_cpu, **{slow.key: {"both": 0.96}}))[2].verdict == MET


def test_copies_count_where_a_group_fits_the_cache():
    large = next(c for c in CASES if c.group_bytes > 2 << 20 and (c.dtype, c.activation) == ("fp32", "none"))
    small = next(c for c in CASES if c.group_bytes < 2 << 20 and (c.dtype, c.activation) == ("fp32", "none"))
    assert judged(everywhere(on_cpu, **{large.key: {"copied": 0.1}}))[3].verdict == MET
    assert judged(everywhere(on_cpu, **{small.key: {"copied": 0.1}}))[3].verdict == MISSED


def test_a_mean_is_geometric():
    half = {case.key: on_cpu(forward=1.0 if index % 2 else 4.0) for index, case in enumerate(CASES)}
    assert judged(half)[0].found.startswith("2.00x")


def test_part_of_the_cases_is_no_final_verdict():
    part = {case.key: on_cpu() for case in CASES[:20]}
    assert verdicts(part)[:3] == [MET_SO_FAR] * 3
    slow = {case.key: on_cpu(forward=0.5) for case in CASES[:20]}
    assert verdicts(slow)[:3] == [MISSED_SO_FAR, MET_SO_FAR, MISSED], "a case that loses is lost"


def test_nothing_measured_is_said_to_be_nothing():
    found = judged({})
    assert {row.verdict for row in found} == {NOT_MEASURED}
    assert {row.found for row in found} == {""}


def test_an_own_shape_is_not_judged():
    assert set(verdicts({"2x8x16x16:4 fp32 contiguous silu": on_cpu()})) == {NOT_MEASURED}


def test_a_refused_case_misses_the_accuracy():
    refused = {"status": "refused", "reason": "y is off by 9 eps", "errors": {"groupnorm": {"y": 9.0}}, "out": {}}
    found = judged(everywhere(on_cpu) | {CASES[3].key: refused})
    assert found[5].verdict == MISSED
    assert found[5].found == "161 of 162 cases; y is off by 9 eps"
    assert found[0].verdict == MET_SO_FAR, "without a time the mean is not of all"


def test_promises():
    found = results(None)
    found["hostile"].update({"a: 1": {"reason": ""}, "b: 2": {"reason": "dx is off"}})
    found["kept"]["norm and SiLU"] = {"tensors": {"groupnorm": 2.0, "torch": 2.0}, "autocast": "float32"}
    assert [(row.found, row.verdict) for row in judge(found)[6:]] == [
        ("1 of 2 cases; dx is off", MISSED),
        ("2 tensors, torch eager 2", MISSED),
        ("float32", MISSED),
    ]


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [
        ({}, []),
        ({"forward": 0.8}, [0]),
        ({"forward": 0.6}, [0, 1]),
        ({"backward": 0.7}, [2]),
        ({"both": 2.9}, [4]),
        ({"compiled": 0.99}, [5]),
    ],
)
def test_the_targets_of_a_gpu(numbers, missed):
    small = GPU | {"l2": 2 << 20}  # so that some groups do not fit
    found = verdicts({case.key: on_gpu(**numbers) for case in CASES}, small)
    assert [index for index in range(6) if found[index] == MISSED] == missed
    assert all(verdict == MET for index, verdict in enumerate(found[:6]) if index not in missed)


@pytest.mark.parametrize(("seconds", "verdict"), [(None, NOT_MEASURED), (199e-6, MET), (201e-6, MISSED)])
def test_the_best_published_time_is_a_target_on_its_gpu(seconds, verdict):
    key = "1x128x20x256x256:32 bf16 contiguous silu"
    case = on_gpu()
    case["timings"]["forward"]["seconds"]["groupnorm"] = [0.0, seconds or 0.0, 1.0]
    found = results(None, GPU | {"name": "NVIDIA H200"})
    found["cases"].update({key: case} if seconds else {})
    (row,) = [row for row in judge(found) if row.target.startswith(key)]
    assert row.verdict == verdict
    assert row.found == (f"{1e6 * seconds:.1f} us" if seconds else "")
    assert not [row for row in judge(results(None, GPU)) if "published" in row.target]


def test_losses_are_listed_worst_first():
    first, second = CASES[5], CASES[9]
    found = results(None)
    found["cases"].update(everywhere(on_cpu, **{first.key: {"forward": 0.99}, second.key: {"compiled": 0.5}}))
    assert [(loss.case, loss.phase, loss.peer, loss.ratio) for loss in losses(found)] == [
        (second, "forward", "compile", 0.5),
        (second, "forward+backward", "compile", 0.5),
        (first, "forward", "torch", 0.99),
    ]
