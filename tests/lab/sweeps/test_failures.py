"""Sweeps that are killed, starved and lied to: each ends unbroken or says why, and nothing finished is lost."""

import errno
import gzip
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from groupnorm import files as files_module
from groupnorm.cli import app
from groupnorm.files import RunFolderError
from groupnorm.lab import compare, load
from groupnorm.lab.common import store
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.data import load as load_data
from groupnorm.lab.sweeps import local
from groupnorm.lab.sweeps.configuration import ConfigurationError, plan
from groupnorm.lab.sweeps.worker import dataset_of, run_bundle, run_cells
from lab import fault_injection
from lab.fault_injection import epochs_recorded, facts, finished, wait_until, workers_of

SWEEP = {
    "norms": "bn,gn", "batch_sizes": "32,16", "seeds": 2, "epochs": 3, "limit_train": 96, "limit_val": 40,
    "device": "cpu",
}  # fmt: skip
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in SWEEP.items()]


@pytest.fixture(scope="module")
def part():
    """Starts a function of ``fault_injection`` in a process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "lab.fault_injection"])
    begun = []

    def start(function, *arguments):
        process = context.Process(target=function, args=arguments)
        process.start()
        begun.append(process)
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield start
    for process in begun:
        process.kill()
        process.join()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the workers have: the number of threads changes the order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(part, tmp_path_factory):
    """The folder of a sweep that nothing disturbed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    part(
        fault_injection.live, folder, {**SWEEP, "epochs": 1, "workers": 2}
    ).join()  # what comes first only, out of the way
    shutil.rmtree(folder)
    begin = time.monotonic()
    process = part(fault_injection.live, folder, SWEEP | {"workers": 2})
    process.join()
    assert process.exitcode == 0
    return folder, time.monotonic() - begin


@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_two_kills_at_random_moments_change_nothing(part, unbroken, tmp_path, seed):
    """Between any two lines of what touches the disk, and at any time; each life in other company."""
    reference, seconds = unbroken
    lines = int(Path(f"{reference}.lines").read_text())
    kills, folder, moment = 0, tmp_path / "0", fault_injection.moments(seed)
    while kills < 22 or not_finished(folder, reference):
        by, share, workers = next(moment)
        before = finished(folder)
        last = kills >= 22
        at = max(1, int(share * lines)) if by == "line" and not last else None
        process = part(fault_injection.live, folder, SWEEP | {"workers": workers}, at)
        if by == "time" and not last:
            process.join(share * seconds)
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
        assert {name: data for name, data in finished(folder).items() if name in before} == before
        if (folder / "run.json").exists():
            assert set(load(folder).table.status) <= {"pending", "running", "finished"}
        if process.exitcode == 0:
            assert not not_finished(folder, reference)
            if kills < 22:
                folder = tmp_path / str(kills)
    assert not list(tmp_path.glob("*/cells/*/checkpoint.pt"))
    assert not list(tmp_path.glob("**/.*.tmp"))
    assert any(Path(f"{path}.stacked").read_text() for path in tmp_path.iterdir() if path.is_dir())


def not_finished(folder, reference):
    return not (folder / "cells").is_dir() or facts(folder) != facts(reference)


def test_kills_of_the_command_and_of_its_workers_change_nothing(part, unbroken, tmp_path):
    """At start-up, while the workers start, one worker after the other, all at once, in training."""
    folder, kills, draw = tmp_path / "run", 0, random.Random(0)
    arguments = ["compare", *ARGUMENTS, "--workers=2", "--out", str(folder)]

    def kill(*numbers):
        nonlocal kills
        for number in numbers:
            os.kill(number, signal.SIGKILL)
            kills += 1

    def begun():
        return part(fault_injection.command, arguments, tmp_path / "output")

    def gone(process):
        process.join()
        wait_until(lambda: not workers_of(folder))  # they end by themselves, without their parent
        assert set(load(folder).table.status) <= {"pending", "running", "finished", "crashed"}

    start_up = subprocess.Popen([sys.executable, "-m", "groupnorm.cli", *arguments], stdout=subprocess.DEVNULL)
    time.sleep(draw.uniform(0.2, 1.0))
    kill(start_up.pid)
    start_up.wait()

    process = begun()
    wait_until(lambda: len(workers_of(folder)) == 2)
    kill(process.pid)
    gone(process)

    process = begun()
    for number in (1, 2):
        wait_until(lambda number=number: epochs_recorded(folder) >= number)
        kill(workers_of(folder)[0])
        wait_until(lambda: len(workers_of(folder)) == 2 or not process.is_alive())
    kill(process.pid, *workers_of(folder))
    gone(process)

    process = begun()
    before, done = finished(folder), epochs_recorded(folder)
    wait_until(lambda: epochs_recorded(folder) > done)
    kill(process.pid)
    gone(process)

    assert kills >= 7  # 8 if both workers were alive when all were killed at once
    process = begun()
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    assert facts(folder) == facts(unbroken[0])
    assert {name: data for name, data in finished(folder).items() if name in before} == before
    assert not list(folder.glob("cells/*/checkpoint.pt"))


def test_a_worker_ends_when_its_parent_dies_in_the_middle_of_a_task(tmp_path):
    worker = subprocess.Popen([sys.executable, "-m", "groupnorm.lab.sweeps.worker", tmp_path], stdin=subprocess.PIPE)
    worker.communicate(b'{"cells": [{"datas', timeout=60)
    assert worker.returncode == 0


def test_a_worker_without_a_listener_ends_and_blames_no_cell(unbroken, tmp_path):
    """Its parent died: that it cannot tell of a record is no reason to write a crash behind it."""
    cell = load(unbroken[0]).cells[0]
    worker = subprocess.Popen(
        [sys.executable, "-m", "groupnorm.lab.sweeps.worker", tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    worker.stdout.close()
    worker.stdin.write(json.dumps({"cells": [cell.model_dump()], "data_dir": None}).encode() + b"\n")
    worker.stdin.flush()
    assert worker.wait(timeout=60) == 0
    worker.stdin.close()
    told = RunFolder(tmp_path).cell(cell.id).records()
    assert [record["kind"] for record in told] == ["start", "epoch"]


@pytest.fixture
def stub(monkeypatch):
    """Workers that run a line of Python instead."""

    def use(code):
        class Stub(subprocess.Popen):
            def __init__(self, arguments, **options):
                super().__init__([sys.executable, "-c", code], **options)

        monkeypatch.setattr(local.subprocess, "Popen", Stub)

    return use


@pytest.mark.timeout(60)
def test_a_worker_that_dies_in_the_middle_of_an_event_is_a_crash(unbroken, tmp_path, stub):
    stub('import sys; sys.stdout.write(\'{"cell": "g\'); sys.stdout.flush(); sys.exit(4)')
    cell = load(unbroken[0]).cells[0]
    *_, last = local.sweep([cell], RunFolder(tmp_path), 1, None)
    assert last["status"] == "crashed"
    assert "ended with exit code 4" in last["reason"]


def test_nobody_writes_to_a_cell_that_another_process_holds(unbroken, tmp_path, stub, monkeypatch):
    """A worker of a killed sweep that does not die: the new sweep stops, and puts no line between its lines."""
    stub("import sys; sys.exit(1)")
    cell = load(unbroken[0]).cells[0]
    folder = RunFolder(tmp_path).cell(cell.id)
    lock = store._lock
    with folder.lock():
        monkeypatch.setattr(store, "_lock", lambda path, timeout, what: lock(path, 0.1, what))
        with pytest.raises(RunFolderError, match=r"cell .* is being written by another process .*wait for it, or stop"):
            list(local.sweep([cell], RunFolder(tmp_path), 1, None))
    assert folder.records() == []


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit_train=96, limit_val=40)


@pytest.fixture(scope="module")
def pair(unbroken):
    """Two cells of the sweep."""
    return load(unbroken[0]).cells[:2]


def train(cells, folder, digits):
    run_cells(cells, RunFolder(folder), lambda: digits, lambda *event: None)


def same(folder, reference):
    """Whether the folder holds the reference's records of the cells that it has."""
    expected = facts(reference)
    return facts(folder) == {name: expected[name] for name in facts(folder)}


def test_a_worker_trains_no_cell_that_another_process_holds(pair, tmp_path, monkeypatch):
    run, lock = RunFolder(tmp_path), store._lock
    monkeypatch.setattr("groupnorm.lab.sweeps.worker.make_deterministic", lambda: None)
    monkeypatch.setattr(store, "_lock", lambda path, timeout, what: lock(path, 0.1, what))
    with run.cell(pair[0].id).lock(), pytest.raises(RunFolderError, match="being written by another process"):
        run_bundle(pair[:1], run, None, lambda *event: None)
    assert run.cell(pair[0].id).records() == []


def opening(monkeypatch, disk):
    """Let whole files, and lines that are added to one, be opened by this; it is returned."""
    for module in (files_module, store):
        monkeypatch.setattr(module, "open", disk, raising=False)
    return disk


class FullDisk:
    """Stands for ``open``: some writes find no space, after half of their bytes."""

    def __init__(self, full):
        self.full, self.writes = full, 0

    def __call__(self, path, mode):
        disk = self

        class File(io.FileIO):
            def write(self, data):
                disk.writes += 1
                if disk.full(disk.writes):
                    super().write(bytes(data)[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        return File(path, mode)


@pytest.mark.parametrize("ever", [True, False], ids=["for good", "once"])
def test_a_disk_that_is_full_at_any_write_loses_nothing(unbroken, pair, digits, tmp_path, monkeypatch, ever):
    disk = opening(monkeypatch, FullDisk(lambda n: False))
    train(pair, tmp_path / "whole", digits)
    assert disk.writes == 2 * (1 + 2 * 3 + 1), "start, an epoch and a checkpoint three times, end"
    for at in range(1, disk.writes + 1):
        folder = tmp_path / str(at)
        full = FullDisk((lambda n, at=at: n >= at) if ever else (lambda n, at=at: n == at))
        opening(monkeypatch, full)
        try:
            train(pair, folder, digits)
        except RunFolderError as error:
            reason = str(error)
            assert ever
        else:
            ends = [RunFolder(folder).cell(cell.id).records()[-1] for cell in pair]
            (reason,) = (end["reason"] for end in ends if end["status"] == "crashed")
        assert "No space left on device; expected a writable folder with space: free some, or choose" in reason
        before = finished(folder)
        assert len(before) == (1 if not ever or at > 8 else 0), "eight writes finish the first, then the second begins"
        opening(monkeypatch, open)
        train(pair, folder, digits)
        assert same(folder, unbroken[0])
        assert before.items() <= finished(folder).items()


def test_a_full_disk_ends_the_command_with_a_message(part, unbroken, tmp_path):
    """No file may pass 12 kB: records do, checkpoints and the report do not."""
    folder, output = tmp_path / "run", tmp_path / "output"
    arguments = ["compare", *ARGUMENTS, "--norms=gn", "--batch-sizes=32", "--workers=1", "--out", str(folder)]
    process = part(fault_injection.command, arguments, output, 12_000)
    process.join()
    said = output.read_text()
    assert process.exitcode == 2, said
    assert f"cannot write to {folder}" in said
    assert "expected a writable folder with space: free some, or choose another --out" in said
    assert "Traceback" not in said
    table = load(folder).table
    assert set(table.status) == {"crashed"}
    assert table.reason.str.contains(r"cannot write to .*File too large; expected a writable folder").all()
    process = part(fault_injection.command, arguments, output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert len(facts(folder)) == 2
    assert same(folder, unbroken[0])


@pytest.fixture(scope="module")
def broken_off(pair, digits, tmp_path_factory):
    """A cell two epochs into three."""

    class KilledError(BaseException):
        pass

    told = []

    def emit(name, event):
        told.append(event["kind"])
        if told.count("epoch") == 2:
            raise KilledError

    folder = tmp_path_factory.mktemp("broken") / "run"
    with pytest.raises(KilledError):
        run_cells(pair[:1], RunFolder(folder), lambda: digits, emit)
    return folder


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_record_cut_anywhere_is_made_again(unbroken, broken_off, pair, digits, tmp_path, line, share):
    """``share`` of the line is left: nothing, half, all but the end of line, the whole line."""
    shutil.copytree(broken_off, tmp_path / "run")
    path = tmp_path / "run" / "cells" / pair[0].id / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    path.write_bytes(b"".join(lines[:line]) + lines[line][: int(share * len(lines[line]))])
    train(pair[:1], tmp_path / "run", digits)
    assert same(tmp_path / "run", unbroken[0])


def test_a_result_cut_in_half_is_found_again(unbroken, pair, digits, tmp_path):
    train(pair[:1], tmp_path, digits)
    path = tmp_path / "cells" / pair[0].id / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    train(pair[:1], tmp_path, digits)
    assert same(tmp_path, unbroken[0])


def test_a_cell_goes_on_from_its_last_epoch(broken_off, pair, digits, tmp_path):
    """To start anew would give the same records, but not as soon."""
    shutil.copytree(broken_off, tmp_path / "run")
    told = []
    run_cells(pair[:1], RunFolder(tmp_path / "run"), lambda: digits, lambda name, event: told.append(event["kind"]))
    assert [kind for kind in told if kind != "progress"] == ["epoch", "end"], "one epoch of three is left"


def test_a_checkpoint_that_finds_no_space_leaves_the_last_one(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path).cell("a")
    folder.save_checkpoint({"epoch": 1})
    opening(monkeypatch, FullDisk(lambda n: True))
    with pytest.raises(RunFolderError, match="No space left"):
        folder.save_checkpoint({"epoch": 2})
    assert folder.load_checkpoint() == (0, {"epoch": 1})


def flipped(data):
    """One bit of a weight is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1], flipped],
    ids=["empty", "half", "all but a byte", "a bit"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_said_and_not_used(unbroken, broken_off, pair, digits, tmp_path, capsys, damage):
    shutil.copytree(broken_off, tmp_path / "run")
    path = tmp_path / "run" / "cells" / pair[0].id / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    train(pair[:1], tmp_path / "run", digits)
    assert "checkpoint.pt is damaged and not used" in capsys.readouterr().out
    assert same(tmp_path / "run", unbroken[0])


def test_a_request_cut_in_half_is_named_and_written_again(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    path = folder / "run.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunFolderError, match=r"run\.json is damaged; .* run the same compare again"):
        load(folder)
    before = finished(folder)
    table = compare(out=folder, progress=False, **SWEEP).table
    assert set(table.status) == {"finished"}
    assert finished(folder) == before


def file_as_folder(folder):
    folder.write_text("")


def file_as_cells(folder):
    folder.mkdir()
    (folder / "cells").write_text("")


def folder_as_records(folder):
    comparison, data = plan(**SWEEP)
    for cell in comparison.cells(data.digest):
        (folder / "cells" / cell.id / "records.jsonl").mkdir(parents=True)


def read_only(folder):
    if os.geteuid() == 0:
        pytest.skip("root may write to a read-only folder")
    folder.mkdir(mode=0o500)


@pytest.mark.parametrize("prepare", [file_as_folder, file_as_cells, folder_as_records, read_only])
def test_a_folder_that_cannot_be_used_ends_the_command_with_a_message(tmp_path, prepare):
    prepare(tmp_path / "run")
    found = CliRunner().invoke(app, ["compare", *ARGUMENTS, "--out", str(tmp_path / "run")])
    assert found.exit_code == 2
    assert f"{tmp_path / 'run'}" in found.output
    assert "or choose another --out" in found.output


def test_a_second_command_in_one_folder_is_refused_and_disturbs_nothing(part, unbroken, tmp_path):
    folder = tmp_path / "run"
    first = part(fault_injection.live, folder, SWEEP | {"workers": 1})
    wait_until(lambda: epochs_recorded(folder))
    os.kill(first.pid, signal.SIGSTOP)
    second = CliRunner().invoke(app, ["compare", *ARGUMENTS, "--out", str(folder)])
    os.kill(first.pid, signal.SIGCONT)
    assert second.exit_code == 2
    assert f"being written by another process (it holds {folder / 'lock'}); wait for it, or stop it" in second.output
    first.join()
    assert first.exitcode == 0
    assert facts(folder) == facts(unbroken[0])


IDX = {"dataset": "mnist", "norms": "gn", "batch_sizes": 8, "seeds": 1, "epochs": 1, "device": "cpu", "workers": 1}


@pytest.fixture
def idx(tmp_path):
    """A folder with a tiny MNIST; returns a function that writes its training images."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)

    def write(name, values):
        header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + values.numpy().tobytes()))

    def images(seed):
        generator = torch.Generator().manual_seed(seed)
        write("train-images-idx3", torch.randint(256, (20, 8, 8), generator=generator, dtype=torch.uint8))
        return folder / "train-images-idx3-ubyte.gz"

    for name in ("train-labels-idx1", "t10k-labels-idx1"):
        write(name, torch.arange(20, dtype=torch.uint8) % 10)
    write("t10k-images-idx3", torch.arange(20 * 64).remainder(256).to(torch.uint8).view(20, 8, 8))
    images(0)
    return tmp_path / "data", images


def test_data_that_changes_under_way_is_the_reason_of_a_crash(idx, tmp_path):
    data_dir, images = idx
    comparison, data = plan(data_dir=data_dir, **IDX)
    (cell,) = comparison.cells(data.digest)
    run = RunFolder(tmp_path / "run")

    def attempt():
        run_cells([cell], run, partial(dataset_of, cell, data_dir, {}), lambda *event: None)
        return run.cell(cell.id).records()[-1]

    path = images(1)
    assert "if its files changed, start the command again" in attempt()["reason"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"DataError: {path} cannot be read" in attempt()["reason"]
    with pytest.raises(ConfigurationError, match=r"cannot be read .*: replace it"):
        plan(data_dir=data_dir, **IDX)
    images(0)
    assert attempt()["status"] == "finished"
    assert [record["kind"] for record in run.cell(cell.id).records()] == ["start", "epoch", "end"]


def test_data_that_changed_between_two_runs_gives_new_cells(idx, tmp_path, monkeypatch):
    data_dir, images = idx
    monkeypatch.setattr("groupnorm.lab.sweeps.runner.schedule", lambda *_: (event for event in ()))
    first = compare(data_dir=data_dir, out=tmp_path / "run", progress=False, **IDX)
    images(1)
    second = compare(data_dir=data_dir, out=tmp_path / "run", progress=False, **IDX)
    assert {cell.data_digest for cell in first.cells}.isdisjoint(cell.data_digest for cell in second.cells)
    assert set(first.table.cell).isdisjoint(second.table.cell)
