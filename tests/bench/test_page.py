"""The page: a view of the results, which says what is not there."""

import re

import pytest

from bench.synthetic import GPU, STAMPED, full, of_kernels, on_cpu, on_gpu, results
from groupnorm.bench import machine, show
from groupnorm.bench.cases import listed
from groupnorm.bench.page import write
from groupnorm.bench.store import load, load_all
from groupnorm.errors import ArgumentError
from groupnorm.files import RunFolderError

MODEL = {
    "status": "measured",
    "timings": {
        "inference": {
            "seconds": {"before": [2.0] * 3, "after": [1.0] * 3, "free": [0.8] * 3},
            "ratios": {"before": 2.0, "free": 0.8},
            "others": 0.5,
        }
    },
    "memory": {"inference": {"before": 3_000_000, "after": None}},
    "stamp": machine.stamp(),
    **STAMPED,
}


NO_GPU = 'Not measured. Until it is, `"auto"` takes [ATen](backends.md#on-a-gpu) there.'


def page(tmp_path, *every):
    path = tmp_path / "speed.md"
    write(path, every)
    return path.read_text()


def part(text, kind):
    parts = re.split(r"^## (.*)\n", text, flags=re.M)
    return parts[parts.index(kind) + 1]


def test_nothing_measured(tmp_path):
    text = page(tmp_path)
    assert part(text, "CPU").strip() == "Not measured."
    assert part(text, "GPU").strip() == NO_GPU
    assert not list(tmp_path.glob("*.png"))


def test_a_cpu_and_no_gpu(tmp_path):
    found = full(tmp_path / "cpu.json")
    text = page(tmp_path, found)
    assert part(text, "GPU").strip() == NO_GPU
    cpu = part(text, "CPU")
    assert "Test CPU @ 2 GHz, 2 threads, AVX512, L2 2 MB. Measured 2030-01-02" in cpu
    rows = [line for line in cpu.splitlines() if re.match(r"\| (fp32|bf16) (cont|chan)", line)]
    assert len(rows) == len(listed()), "every case has its row"
    assert "Whole models: not measured." in cpu
    assert "(speed-cpu.png)" in cpu
    assert (tmp_path / "speed-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_what_loses_is_shown_losing(tmp_path):
    found = results(tmp_path / "cpu.json")
    found["cases"].update({case.key: on_cpu() for case in listed()})
    assert "In none of the 162 cases is one of the others faster." in page(tmp_path, found)
    slow = listed()[7].key
    found["cases"][slow] = on_cpu(forward=0.87, others=0.4)
    text = page(tmp_path, found)
    assert f"| {slow} | forward | torch eager | **0.870** |" in text
    assert r"| bf16 contiguous relu \* | 1 | **0.87×** | 1.50× | 80% | 1 | 3.50× | 1.50× | 125% |" in text
    assert "| **missed** |" in text


def test_no_figure_without_its_measurement(tmp_path):
    found = results(tmp_path / "cpu.json")
    entry = on_cpu()
    del entry["timings"]["forward"]["ratios"]["compile"], entry["timings"]["forward+backward, warm"]
    found["cases"][listed()[0].key] = entry
    refused = {"status": "refused", "reason": "dx is off", "errors": {}, "out": {}, "stamp": machine.stamp(), **STAMPED}
    found["cases"][listed()[1].key] = refused
    text = page(tmp_path, found)
    assert f"- {listed()[1].key}: refused: dx is off" in text
    assert "| fp32 contiguous none | 1 | 2.50× | 80% | 1 | 3.50× | - |" in text


def test_what_a_call_costs(tmp_path):
    found = results(tmp_path / "cpu.json")
    assert "What a call costs" not in page(tmp_path, found)
    timing = {"seconds": {"torch": [1e-5] * 3, "groupnorm": [12e-6] * 3}}
    phases = [phase + after for phase in ("forward", "forward+backward") for after in ("", ", after a copy")]
    found["calls"]["smallest"] = {"timings": dict.fromkeys(phases, timing)}
    text = page(tmp_path, found)
    assert "| torch eager | 10 | 10 | 10 | 10 |" in text
    assert "does nothing |" not in text, "it was not measured"


def test_what_bounds_each_case(tmp_path):
    found = results(tmp_path / "cpu.json")
    found["cases"].update({case.key: on_cpu() for case in listed()})
    assert "What bounds it" not in page(tmp_path, found), "the kernels were not measured by themselves"
    found["rates"].update(of_kernels(call=20e-6, element=0.1e-9))
    text = page(tmp_path, found)
    assert re.search(r"^\| forward \| memory \| \d+ \| 2\.50× \| 3\.05× \| 3\.12× \|$", text, flags=re.M)
    assert "| bf16 channels-last silu | 20 | 0.10 | 20 | 0.10 |" in text


def test_hostile_input(tmp_path):
    found = results(tmp_path / "cpu.json")
    one = {"y": 1.0, "dx": 2.0, "dweight": 30.0, "dbias": 4.0}
    found["hostile"]["far: first"] = {"errors": {"groupnorm": one, "torch": one | {"y": 50.0}}, "reason": ""}
    found["hostile"]["far: second"] = {"errors": {"groupnorm": one, "torch": one | {"dx": None}}, "reason": ""}
    assert "| far | 2 | 1 | 50 | 30 | not finite |" in page(tmp_path, found)


def test_models(tmp_path):
    found = results(tmp_path / "cpu.json")
    refused = {"status": "refused", "reason": "the output is off", "stamp": machine.stamp(), **STAMPED}
    found["models"].update({"resnet50 fp32": MODEL, "unet bf16": refused})
    text = page(tmp_path, found)
    assert r"GroupNorm(32), 8x128x128, fp32 \* | inference | 2000 | 1000 | 2.00× | 2.50× | 3 | not measured |" in text
    assert "| conditional UNet of three levels, 2x32x32, bf16 | refused: the output is off | - | - |" in text


def test_a_gpu_has_its_backward_pass(tmp_path):
    found = results(tmp_path / "gpu.json", GPU)
    found["cases"].update({case.key: on_gpu() for case in listed()})
    text = page(tmp_path, found)
    assert part(text, "CPU").strip() == "Not measured."
    assert "Test GPU, CUDA 13.0, L2 50 MB." in text
    assert "| case | forward, ms | torch eager | torch.compile | of copy | backward, ms |" in text
    assert (tmp_path / "speed-gpu.png").exists()
    assert "Tests on this GPU" not in text


def test_a_gpu_has_its_tests_and_what_was_trained_there(tmp_path):
    found = results(tmp_path / "gpu.json", GPU | {"driver": "580.1", "triton": "3.6.0"})
    tests = {"passed": 300, "failed": ["a.py::test_b"], "skipped": {"no memory": 2}, "whole": False}
    errors = {"bn 32": 2.25, "bn 2": 62.9, "gn 32": 2.9, "gn 2": None}
    found["tests"]["triton"] = tests | {"stamp": machine.stamp(), **STAMPED}
    found["training"]["digits bf16"] = {"errors": errors, "seconds": 33.1, "stamp": machine.stamp(), **STAMPED}
    text = part(page(tmp_path, found), "GPU")
    assert "Test GPU, CUDA 13.0, driver 580.1, Triton 3.6.0, L2 50 MB." in text
    assert "300 tests of the kernels passed and 1 failed; the run was cut before the last." in text
    assert "- failed: `a.py::test_b`" in text
    assert "- 2 skipped: no memory" in text
    assert "#### digits bf16, 33.1 s" in text
    assert "| norm | 32 | 2 |" in text
    assert "| bn | 2.2 | 62.9 |" in text
    assert "| gn | 2.9 | undefined |" in text


def test_results_come_back_from_the_disk(tmp_path):
    for name, facts in (("b", machine.machine("cpu", 2)), ("a", GPU)):
        results(tmp_path / f"{name}.json", facts).put("cases", {"key": {"status": "skipped", "reason": "x"}})
    assert [found.machine["device"] for found in load_all(tmp_path)] == ["cpu", "cuda"]
    entry = load(tmp_path / "b.json")["cases"]["key"]
    assert entry["stamp"] == machine.stamp()
    assert set(entry["stamp"]) == {"groupnorm", "revision", "torch", "kernels"}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"cannot read .*b\.json"):
        load_all(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intel(R) Xeon(R) Processor", "intel-xeon-processor-2-threads"),
        ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", "intel-core-i7-8700-2-threads"),
    ],
)
def test_the_name_of_the_file_is_that_of_the_processor(name, expected):
    assert machine.slug({"name": name, "threads": 2}) == expected
    assert machine.slug({"name": "NVIDIA H200"}) == "nvidia-h200"


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ArgumentError, match="torch sees no GPU"):
        machine.machine("cuda", 2)


def test_the_work_of_others_is_seen(monkeypatch):
    busy = iter([10.0, 13.0])
    now = iter([100.0, 104.0])
    monkeypatch.setattr(machine, "_busy", lambda: next(busy))
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(now))
    with machine.watching_others() as found:
        pass
    assert found == {"others": 0.75}
    assert show.disturbed({"timings": {"forward": found}})
    assert not show.disturbed({"timings": {"forward": {"others": None}}})
