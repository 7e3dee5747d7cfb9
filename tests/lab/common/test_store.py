"""The run folder: nothing finished is lost, whenever the process is killed."""

import json
import os
import platform
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from groupnorm.files import RunFolderError, write_atomically
from groupnorm.lab.common.store import RunFolder
from lab.synthetic import make_cell

START = {"kind": "start", "cell": {}, "environment": {}, "time": 1.7e9}
END = {"kind": "end", "status": "finished", "reason": ""}


def epoch(number, **changes):
    numbers = {"epoch": number, "step": 10, "train_error": 5.0, "error": 0.1 + 0.2, "seconds": 1.5}
    return {"kind": "epoch", **numbers, "images_per_second": 10.0, **changes}


def test_records_come_back_as_they_were_appended(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    assert folder.records() == []
    records = [START, epoch(1), END | {"reason": 'a "quoted" ü 🙂'}]
    for record in records:
        folder.append(record)
    assert folder.records() == records


def test_a_line_torn_by_a_kill_is_not_read_and_not_continued(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    folder.append(START)
    with open(folder.path / "records.jsonl", "ab") as file:
        file.write(b'{"kind": "epo')
    assert folder.records() == [START]
    folder.append(END)
    assert folder.records() == [START, END]


def test_keep_drops_what_the_checkpoint_does_not_know(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    for number in range(4):
        folder.append(epoch(number))
    assert [record["epoch"] for record in folder.keep(2)] == [0, 1]
    folder.append(epoch(9))
    assert [record["epoch"] for record in folder.records()] == [0, 1, 9]


def test_a_checkpoint_knows_the_number_of_records_it_stands_for(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    assert folder.load_checkpoint() is None
    folder.append(START)
    folder.append(epoch(1))
    folder.save_checkpoint({"weight": torch.arange(3.0)})
    count, state = folder.load_checkpoint()
    assert count == 2
    assert torch.equal(state["weight"], torch.arange(3.0))
    folder.drop_checkpoint()
    folder.drop_checkpoint()  # dropping twice is no error: a kill can fall between dropping and recording
    assert folder.load_checkpoint() is None


def test_a_write_that_fails_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_atomically(path, b"old")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path):
    with (
        RunFolder(tmp_path).lock(),
        pytest.raises(RunFolderError, match="being written by another process"),
        RunFolder(tmp_path).lock(),
    ):
        pass
    with RunFolder(tmp_path).lock():  # free again
        pass


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(
        RunFolderError, match=r"holds no run\.json that can be read \(No such file or directory\); expected a folder"
    ):
        RunFolder(tmp_path).request()


def test_records_are_json_lines(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    folder.append({"x": float("nan")})
    folder.append({"y": 1})
    lines = (tmp_path / "cells" / "a" / "records.jsonl").read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [["x"], ["y"]]


def test_records_end_before_a_damaged_line(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    folder.append(START)
    with open(folder.path / "records.jsonl", "ab") as file:
        file.write(b'\xff\xfe{"kind"\n7\n')
    folder.append(END)
    assert folder.records() == [START]


def test_a_damaged_checkpoint_counts_as_none(tmp_path, capsys):
    folder = RunFolder(tmp_path).cell("a")
    folder.append(START)
    (folder.path / "checkpoint.pt").write_bytes(b"nonsense")
    assert folder.load_checkpoint() is None
    assert "is damaged and not used" in capsys.readouterr().out


def test_brackets_without_end_are_damage(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    folder.append(START)
    with open(folder.path / "records.jsonl", "ab") as file:
        file.write(b"[" * 200_000 + b"\n")
    assert folder.records() == [START]


def without(record, name):
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (without(END, "status"), "'status' of an end is None; expected one of finished, undefined, diverged, crashed"),
        (END | {"status": "running"}, "'status' of an end is 'running'"),
        (END | {"status": ["finished"]}, "'status' of an end is"),
        (END | {"reason": None}, "'reason' of an end is None; expected a text"),
        (without(epoch(1), "error"), "'error' of an epoch is None; expected a finite number"),
        (epoch(1, error=float("nan")), "'error' of an epoch is nan"),
        (epoch(1, error="12.5"), "'error' of an epoch is '12.5'"),
        (epoch(1, train_error=None), "'train_error' of an epoch is None"),
        (epoch(1, seconds=float("inf")), "'seconds' of an epoch is inf"),
        (epoch(1, images_per_second=[1]), "'images_per_second' of an epoch is"),
        (without(epoch(1), "step"), "'step' of an epoch is None"),
        (without(START, "environment"), "'environment' of a start is None; expected a dictionary"),
        (START | {"environment": []}, "'environment' of a start is"),
        (without(START, "time"), "'time' of a start is None"),
    ],
)
def test_a_whole_record_of_another_form_is_named_and_not_dropped(tmp_path, record, problem):
    folder = RunFolder(tmp_path).cell("a")
    folder.append(START)
    with open(folder.path / "records.jsonl", "ab") as file:
        file.write(json.dumps(record).encode() + b"\n")
    before = (folder.path / "records.jsonl").read_bytes()
    with pytest.raises(RunFolderError) as caught:
        folder.records()
    assert f"records.jsonl, line 2: {problem}" in str(caught.value)
    assert f"use that version, or remove {folder.path} to train the cell again" in str(caught.value)
    assert (folder.path / "records.jsonl").read_bytes() == before


def test_text_that_no_file_takes_comes_back_readable(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    folder.append(END | {"reason": "no file caf\udce9.png 🙂"})
    with open(folder.path / "records.jsonl", "ab") as file:
        file.write(b'{"kind": "note", "\\uDCE9": ["caf\xed\xb3\xa9"]}\n')
    assert folder.records() == [
        END | {"reason": "no file caf\\udce9.png 🙂"}, {"kind": "note", "\\udce9": ["caf\\udce9"]}
    ]  # fmt: skip
    RunFolder(tmp_path).write_request({"cells": [], "command": "compare caf\udce9"})
    assert RunFolder(tmp_path).request()["command"] == "compare caf\\udce9"


def test_several_writers_of_one_file_each_write_it_whole(tmp_path):
    """In 4 threads: none fails, and who reads sees one of the contents whole."""
    path, contents = tmp_path / "report.html", [bytes([65 + number]) * 50_000 for number in range(4)]
    write_atomically(path, contents[0])
    over, torn = threading.Event(), []

    def read():
        while not over.is_set():
            torn.extend([found] if (found := path.read_bytes()) not in contents else [])

    def write(content):
        for _ in range(50):
            write_atomically(path, content)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write, content) for content in contents]
    over.set()
    reader.join()
    assert [future.exception() for future in done] == [None] * 4
    assert not torn
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    """Who may write to the folder knows which name comes next, say."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("secrets.token_hex", lambda size: "known")
    for link in ("symlink_to", "hardlink_to"):
        planted = tmp_path / "run" / f".run.json.{platform.node()}.{os.getpid()}.known.tmp"
        getattr(planted, link)(victim)
        with pytest.raises(RunFolderError, match="File exists"):
            RunFolder(tmp_path / "run").write_request({"cells": []})
        assert victim.read_text() == "precious"
    RunFolder(tmp_path / "run").write_request({"cells": []})
    assert not (tmp_path / "run" / "run.json").is_symlink()


def test_what_a_killed_writer_left_is_removed_and_what_others_write_is_not(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f".run.json.{platform.node()}"
    dead, alive = tmp_path / f"{name}.{ended.pid}.00.tmp", tmp_path / f"{name}.{os.getppid()}.00.tmp"
    elsewhere, other = tmp_path / f".run.json.elsewhere.{ended.pid}.00.tmp", tmp_path / f"{name}.tmp"
    for path in (dead, alive, elsewhere, other):
        path.write_text("")
    RunFolder(tmp_path).write_request({"cells": []})
    assert set(tmp_path.iterdir()) == {tmp_path / "run.json", alive, elsewhere, other}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', pytest.param("[" * 200_000, id="brackets")])
def test_a_damaged_request_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"run\.json is damaged; expected a request with cells"):
        RunFolder(tmp_path).request()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for action in (
        lambda: RunFolder(tmp_path / "file").write_request({}),
        lambda: RunFolder(tmp_path / "file").lock().__enter__(),
        lambda: RunFolder(tmp_path / "file" / "below").write("table.csv", ""),
        lambda: RunFolder(tmp_path / "file").cell("a").append({}),
    ):
        with pytest.raises(RunFolderError, match="expected a writable folder with space"):
            action()


def test_a_request_that_names_a_cell_twice_is_told(tmp_path):
    cells = [make_cell("gn", 8, 0).model_dump(mode="json")] * 2
    run = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match="cell 1: it is cell 0 again; expected cells as this version"):
        run.cells({"cells": cells})
