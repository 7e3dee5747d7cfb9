"""Run folders of versions before: loaded, reported and resumed. Their files are committed as they were written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from groupnorm.files import RunFolderError
from groupnorm.lab import compare, load
from groupnorm.lab.common.trial import Cell

FOLDERS = sorted((Path(__file__).parent / "fixtures").iterdir())
OPTIONS = {
    "norms": ["bn", "gn"],
    "batch_sizes": [32],
    "seeds": 2,
    "epochs": 2,
    "limit_train": 128,
    "limit_val": 64,
}
"""What the command in each of them asks for."""
every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@pytest.fixture
def run(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "run"))


@every_folder
def test_it_is_loaded(run):
    table = load(run).table.set_index(["norm", "seed"])
    assert list(table.status) == ["finished", "finished", "running", "pending"]
    for (norm, seed), row in table.iterrows():
        lines = (run / "cells" / row.cell / "records.jsonl") if row.epochs else None
        records = [json.loads(line) for line in lines.read_text().splitlines()] if lines else []
        assert row.epochs == sum(record["kind"] == "epoch" for record in records)
        if row.status == "finished":
            assert row.error == records[-2]["error"]
            assert row.train_error == records[-2]["train_error"]
        assert row.cell.startswith(f"{norm}-bs32-seed{seed}-")


@every_folder
def test_its_trials_have_the_identities_they_had(run):
    request = json.loads((run / "run.json").read_text())
    for fields in request["cells"]:
        cell = Cell(**fields)
        begun = list((run / "cells").glob(f"{cell.norm}-bs32-seed{cell.seed}-*"))
        assert not begun or [path.name for path in begun] == [cell.id]


@every_folder
def test_it_is_reported(run):
    page = load(run).report().read_text()
    assert page.count("finished") > 1
    assert (run / "table.csv").read_text().count("\n") == 5


@every_folder
def test_it_is_resumed(run):
    before = {path: path.read_bytes() for path in run.glob("cells/bn-*/records.jsonl")}
    assert len(before) == 2
    result = compare(**OPTIONS, out=run, progress=False)
    assert set(result.table.status) == {"finished"}
    assert {path: path.read_bytes() for path in before} == before, "what was finished is not trained again"
    assert len(list((run / "cells").iterdir())) == 4
    assert torch.tensor(result.table.error).isfinite().all()


@every_folder
@pytest.mark.parametrize("task", ["regression", {"name": "x"}, {"name": "x", "sample": "y", "metric": {"unit": 3}}])
def test_a_task_that_cannot_be_read_is_told(run, task):
    request = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(request | {"task": task}))
    with pytest.raises(RunFolderError, match=r"run.json: task is .*; expected what this version of groupnorm writes"):
        load(run)
