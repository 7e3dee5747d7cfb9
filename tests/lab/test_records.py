"""The run folder: nothing finished is lost, whenever the process is killed."""

import json

import pytest
import torch

from groupnorm.lab.records import RunFolder, RunFolderError, write_atomically


def test_records_come_back_as_they_were_appended(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    assert folder.records() == []
    records = [{"kind": "start"}, {"kind": "epoch", "loss": 0.1 + 0.2}, {"kind": "end", "reason": 'a "quoted" ü'}]
    for record in records:
        folder.append(record)
    assert folder.records() == records


def test_a_line_torn_by_a_kill_is_not_read_and_not_continued(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    folder.append({"kind": "start"})
    with open(folder.path / "records.jsonl", "ab") as file:
        file.write(b'{"kind": "epo')
    assert folder.records() == [{"kind": "start"}]
    folder.append({"kind": "end"})
    assert folder.records() == [{"kind": "start"}, {"kind": "end"}]


def test_keep_drops_what_the_checkpoint_does_not_know(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    for number in range(4):
        folder.append({"kind": "epoch", "number": number})
    assert [record["number"] for record in folder.keep(2)] == [0, 1]
    folder.append({"kind": "epoch", "number": 9})
    assert [record["number"] for record in folder.records()] == [0, 1, 9]


def test_a_checkpoint_knows_the_number_of_records_it_stands_for(tmp_path):
    folder = RunFolder(tmp_path).cell("a")
    assert folder.load_checkpoint() is None
    folder.append({"kind": "start"})
    folder.append({"kind": "epoch"})
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
    folder.append({"kind": "start"})
    with open(folder.path / "records.jsonl", "ab") as file:
        file.write(b'\xff\xfe{"kind"\n7\n')
    folder.append({"kind": "end"})
    assert folder.records() == [{"kind": "start"}]


def test_a_damaged_checkpoint_counts_as_none(tmp_path, capsys):
    folder = RunFolder(tmp_path).cell("a")
    folder.append({"kind": "start"})
    (folder.path / "checkpoint.pt").write_bytes(b"nonsense")
    assert folder.load_checkpoint() is None
    assert "is damaged and not used" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
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
