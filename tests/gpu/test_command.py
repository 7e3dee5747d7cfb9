"""``make gpu`` without a GPU: its limit by a fake clock, runs that are cut at any moment, and what it decides."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.synthetic import GPU, on_gpu, results
from groupnorm.bench import decide
from groupnorm.bench.cases import ACTIVATIONS, LAYOUTS, SHAPES, grid
from groupnorm.bench.machine import stamp

GPU_FOLDER = Path(__file__).parents[2] / "tools" / "gpu"
H200 = GPU | {"name": "NVIDIA H200", "architecture": "sm_90", "driver": "580.1", "triton": "3.6.0"}


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU_FOLDER))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


class Clock:
    """Seconds that pass when a stage runs."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def carried_out(limit, takes, scratch, lacks=()):
    """The outcomes of stages that take so many seconds each; what was asked for is beside."""
    from carry_out import carry_out
    from stages import Stage

    clock, asked, told = Clock(), [], []

    def execute(command, environment, seconds, log):
        asked.append((command, seconds))
        need = takes[command[0]]
        clock.now += min(need, seconds)
        return None if need > seconds else 3 if command[0] == "wrong" else 0

    stages = [Stage(name, name, [name, "{seconds}"], 100, {}, "no GPU" if name in lacks else "") for name in takes]
    outcomes = carry_out(stages, limit, scratch, clock, execute, told.append, threading.Event())
    assert told == outcomes
    return {outcome.stage.name: (outcome.status, outcome.remark) for outcome in outcomes}, asked


def test_stages_run_in_their_order_and_hand_on_what_time_they_leave(tmp_path):
    outcomes, asked = carried_out(150, {"tests": 20, "bench": 90, "models": 39}, tmp_path)
    assert asked == [(["tests", "100"], 100), (["bench", "100"], 100), (["models", "40"], 40)]
    assert outcomes == {"tests": ("done", "20 s"), "bench": ("done", "90 s"), "models": ("done", "39 s")}


def test_the_limit_holds_for_all_together(tmp_path):
    outcomes, asked = carried_out(130, {"tests": 20, "bench": 500, "models": 50, "rest": 1}, tmp_path)
    assert outcomes == {
        "tests": ("done", "20 s"),
        "bench": ("cut", "100 s"),
        "models": ("cut", "10 s"),
        "rest": ("not reached", "the limit is 130 s"),
    }
    assert sum(seconds for _, seconds in asked[1:]) == 110


def test_a_stage_that_fails_or_cannot_run_does_not_end_the_others(tmp_path):
    outcomes, asked = carried_out(300, {"wrong": 5, "bench": 5, "models": 5}, tmp_path, lacks=("bench",))
    assert outcomes["wrong"] == ("failed", "exit code 3 after 5 s")
    assert outcomes["bench"] == ("skipped", "no GPU")
    assert outcomes["models"] == ("done", "5 s")
    assert [command[0] for command, _ in asked] == ["wrong", "models"]


def test_nothing_begins_after_an_interrupt(tmp_path):
    from carry_out import carry_out, execute
    from stages import Stage

    stop = threading.Event()
    ending = Stage("ending", "", [sys.executable, "-c", "import time; time.sleep(60)"], 100, {})
    after = Stage("after", "", ["never"], 100, {})
    threading.Timer(1.0, stop.set).start()
    begin = time.monotonic()
    execute_ = functools.partial(execute, stop=stop)
    outcomes = carry_out([ending, after], 100, tmp_path, time.monotonic, execute_, lambda outcome: None, stop)
    assert [(outcome.stage.name, outcome.status) for outcome in outcomes] == [("ending", "cut")]
    assert time.monotonic() - begin < 30


def test_a_process_is_cut_with_its_children(tmp_path):
    import carry_out

    execute = functools.partial(carry_out.execute, stop=threading.Event())

    child = f"import pathlib, time; time.sleep(8); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    code = "import subprocess, sys, time; print('begun', flush=True); "
    code += f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    begin = time.monotonic()
    assert execute([sys.executable, "-c", code], {}, 2.0, tmp_path / "log") is None
    assert time.monotonic() - begin < 30
    assert (tmp_path / "log").read_text() == "begun\n"
    assert execute([sys.executable, "-c", "import sys; sys.exit(4)"], {}, 60.0, tmp_path / "log") == 4
    time.sleep(max(0.0, begin + 10 - time.monotonic()))
    assert not (tmp_path / "late").exists()


TESTS = """
import os, pytest, signal

def test_right(): pass
def test_wrong(): assert 1 == 2, "that is wrong"
@pytest.mark.skip(reason="no GPU here")
def test_left_out(): pass
@pytest.fixture
def broken(): raise ValueError("a broken fixture")
def test_with_fixture(broken): pass
def test_last():
    if os.environ.get("CUT"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("cut", [False, True])
def test_outcomes_are_kept_one_by_one(cut, workers, tmp_path):
    from outcomes import read

    if cut and workers:
        pytest.skip("xdist puts another worker in the place of the one that died")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = os.environ | {"OUTCOMES": str(tmp_path / "outcomes"), "CUT": "1" if cut else ""}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "outcomes", "-q", *workers, "test_some.py"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    found = read(tmp_path / "outcomes")
    assert found["failed"] == ["test_some.py::test_with_fixture", "test_some.py::test_wrong"]
    assert found["skipped"] == {"no GPU here": 1}
    assert found["passed"] == (1 if cut else 2)
    assert found["whole"] is not cut
    with (tmp_path / "outcomes").open("a") as file:
        file.write('{"outcome": "pas')
    assert read(tmp_path / "outcomes") == found, "a torn line ends what is read"


def test_nothing_is_whole_before_anything_ran(tmp_path):
    from outcomes import read

    assert read(tmp_path / "none") == {"passed": 0, "failed": [], "skipped": {}, "whole": False}


def run_command(tmp_path, *options):
    command = [
        sys.executable,
        str(GPU_FOLDER),
        "--scratch",
        str(tmp_path / "logs"),
        "--results",
        str(tmp_path),
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_without_time_the_tests_are_cut_and_that_is_said(tmp_path):
    process = run_command(tmp_path, "--seconds", "6")
    told, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "GPU: none" in told
    assert "0 failed; cut before the last" in told
    assert "bench         skipped     torch sees no GPU" in told


@pytest.mark.parametrize("seconds", [0.5, 1.5, 6.0])
def test_an_interrupt_at_any_moment_ends_all_and_keeps_what_is_there(seconds, tmp_path):
    from outcomes import read

    process = run_command(tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (130, -signal.SIGTERM), "before the handler is there, the signal itself"
    assert read(tmp_path / "logs" / "tests.jsonl")["whole"] is False
    children = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout
    assert children == "", "nothing goes on"


def of_gpu(tmp_path, *, whole=True, failed=(), names=("bf16", "fp32")):
    found = results(tmp_path / "gpu.json", H200)
    for case in grid(SHAPES, list(names), LAYOUTS, ["silu"]):
        found["cases"][case.key] = on_gpu(both=2.0)
    tests = {"passed": 300, "failed": list(failed), "skipped": {}, "whole": whole}
    found.put("tests", {"triton": tests})
    return found


def test_what_was_measured_becomes_what_auto_decides_by(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"sm_80": {"device": "A100"}}))
    assert decide.write(of_gpu(tmp_path), file)
    entries = json.loads(file.read_text())
    assert set(entries) == {"sm_80", "sm_90"}
    mine = entries["sm_90"]
    assert (mine["device"], mine["driver"], mine["triton"]) == ("NVIDIA H200", "580.1", "3.6.0")
    assert (mine["passed"], mine["failed"]) == (300, 0)
    assert mine["torch"] == stamp()["torch"]
    assert mine["speed"] == {
        f"{dtype} {layout} activation": {"forward": 3.0, "forward+backward": 2.0}
        for dtype in ("bfloat16", "float32")
        for layout in ("channels last", "contiguous")
    }


def test_tests_that_were_cut_decide_nothing(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text("{}")
    assert not decide.write(of_gpu(tmp_path, whole=False), file)
    assert file.read_text() == "{}"


def test_a_case_that_was_refused_is_a_failure(tmp_path):
    found = of_gpu(tmp_path, failed=["tests/ops/test_triton.py::test_some"])
    key = next(iter(found["cases"]))
    found["cases"][key] = {"status": "refused", "reason": "y is off", "stamp": stamp(), "date": "2030-01-02"}
    assert decide.decided(found)["failed"] == 2


def test_what_other_kernels_did_does_not_count(tmp_path):
    found = of_gpu(tmp_path)
    for key, entry in found["cases"].items():
        if " fp32 " in key:
            found["cases"][key] = entry | {"stamp": entry["stamp"] | {"kernels": "others"}}
    assert {name.partition(" ")[0] for name in decide.decided(found)["speed"]} == {"bfloat16"}


def test_few_shapes_decide_nothing(tmp_path):
    found = of_gpu(tmp_path)
    for key in list(found["cases"])[decide.FEWEST - 1 :]:
        del found["cases"][key]
    assert all(speed == {} for speed in decide.decided(found)["speed"].values())


def test_the_most_important_cases_come_first_and_every_kind_is_decided():
    import kernels

    cases = [case for case, _ in kernels.order()]
    assert all(case.dtype == "bf16" and case.activation == "silu" for case in cases[:20])
    assert cases[0].shape.family == "vae"
    assert {case.shape.family for case in cases[:20]} == {"vae", "video", "unet", "resnet"}
    early = [case for case, peers in kernels.order() if not peers][:120]
    kinds = {decide._kind(case) for case in early}
    assert len(kinds) == 3 * 2 * 2, "dtypes, layouts, with and without an activation"
    assert set(ACTIVATIONS) > {case.activation for case in cases}


def test_the_benchmark_stops_when_its_time_is_up(tmp_path, monkeypatch, capsys):
    import kernels

    clock = Clock()
    monkeypatch.setattr(kernels.time, "monotonic", clock)
    monkeypatch.setattr(kernels, "results", lambda folder, device, threads: results(tmp_path / "gpu.json", H200))

    def measure(case, every, device, seconds):
        clock.now += 10
        wrong = clock.now > 1025
        return {"status": "refused", "reason": "y is off"} if wrong else on_gpu()

    monkeypatch.setattr(kernels, "measure", measure)
    with pytest.raises(SystemExit) as ended:
        kernels.main(str(tmp_path), "40")
    assert ended.value.code == 1, "a kernel was refused"
    kept = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert [entry["status"] for entry in kept.values()] == ["measured", "measured", "refused", "refused"]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(
        "1x256x512x512:32 bf16 contiguous silu: forward 1000.0 us, times 0.90 of copy, 3.00 of torch"
    )
    assert told[2].endswith("refused: y is off")


def test_on_a_gpu_the_kernels_are_compiled_and_asked_for(tmp_path):
    from stages import stages

    on, off = ({stage.name: stage for stage in stages(gpu, tmp_path, tmp_path)} for gpu in ("NVIDIA H200", ""))
    assert list(on) == ["tests", "bench", "models", "sanitizer", "compare-bf16", "compare-fp32"]
    assert on["tests"].environment["TRITON_INTERPRET"] == "0"
    assert off["tests"].environment["TRITON_INTERPRET"] == "1"
    assert all(on[name].environment["GROUPNORM_BACKEND"] == "triton" for name in ("bench", "models", "compare-bf16"))
    assert "GROUPNORM_BACKEND" not in on["tests"].environment, "there auto is what it is"
    assert [name for name, stage in off.items() if stage.lacks == "torch sees no GPU"] == list(off)[1:]
    assert sum(stage.most for stage in on.values()) <= 600
