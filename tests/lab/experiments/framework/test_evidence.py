"""The summary of an experiment's records: what is kept, what a run's result is, and how it is selected."""

import json

import pytest

from groupnorm.files import RunFolderError
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.experiments.framework.evidence import Evidence, load, summarise

CELL = {
    "dataset": "digits", "data_digest": "0" * 16, "model": "resnet-tiny", "norm": "gn", "batch_size": 32,
    "normalization_batch": None, "seed": 0, "epochs": 3, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
    "limit_train": None, "limit_val": None, "image_size": None, "device": "cpu", "precision": "fp32", "threads": 1,
}  # fmt: skip
ENVIRONMENT = {"cpu": "a processor", "gpu": None, "torch": "2", "data": "0" * 16}


def row(errors=(50.0, 30.0, 40.0), status="finished", arm="one", **changes):
    epochs = [
        {"epoch": i, "step": 10 * i, "error": error, "train_error": error / 3, "seconds": 1.0}
        for i, error in enumerate(errors, start=1)
    ]
    return {"arm": arm, "cell": CELL | changes, "status": status, "reason": "", "epochs": epochs}


def evidence(*rows, last=1):
    return Evidence({"last": last, "arms": {"one": {"classes": 10}, "two": {"classes": 4}}}, list(rows))


def test_the_result_of_a_run_is_its_last_epoch_or_the_median_of_the_last():
    assert evidence(row()).at()[0] == 40
    assert evidence(row((60.0, 50.0, 30.0, 40.0)), last=3).at()[0] == 40
    assert evidence(row((60.0, 50.0)), last=5).at()[0] == 55
    assert evidence(row()).at("seconds")[0] == 3


def test_rows_are_told_apart_by_the_learning_rate_of_the_cell_not_that_of_its_last_epoch():
    rows = [row((error,), learning_rate=rate) for error, rate in ((50.0, 0.1), (30.0, 0.01))]
    for found in rows:
        found["epochs"][0]["learning_rate"] = 1e-9
    assert evidence(*rows).at(learning_rate=0.01)[0] == 30


def test_a_run_that_diverged_guesses_and_one_that_is_undefined_has_no_result():
    found = evidence(row(status="diverged"), row(status="diverged", arm="two", seed=1), row(status="undefined", seed=2))
    assert found.at().to_dict() == {0: 90, 1: 75}
    assert found.at("seconds").empty


def test_cells_are_selected_by_columns_and_options_and_paired_by_seed():
    rows = [
        row((10.0 * (seed + 1) + shift,), seed=seed, norm=norm, options={"radius": 2})
        for norm, shift in (("bn", 4), ("gn", 1))
        for seed in range(3)
    ]
    found = evidence(*rows[:-1])
    difference = found.at(norm="bn", radius=2) - found.at(norm="gn", radius=2)
    assert difference.dropna().to_dict() == {0: 3, 1: 3}
    assert found.at(norm="ln").empty
    assert found.at("no such measure").empty


def test_an_epoch_is_selected_from_the_front_or_the_back():
    found = evidence(row(), row((5.0, 4.0, 3.0), seed=1))
    assert found.at_epoch(1).to_dict() == {0: 50, 1: 5}
    assert found.at_epoch(-1).to_dict() == {0: 40, 1: 3}


def test_batch_statistics_are_of_the_normalisation_batch_if_there_is_one():
    found = evidence(row(), row(seed=1, normalization_batch=4), row(seed=2, processes=8))
    assert list(found.table["normalization_batch"]) == [32, 4, 4]


def test_it_survives_the_disk_with_six_digits(tmp_path):
    before = evidence(row((100 / 3,)))
    before.save(tmp_path / "e.jsonl")
    after = load(tmp_path / "e.jsonl")
    assert after.head == before.head
    assert after.at()[0] == 33.3333


@pytest.mark.parametrize("content", [None, "", "{", '{"head": 1}\n{'])
def test_a_summary_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "e.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunFolderError, match=r"e\.jsonl (cannot be read|is damaged)"):
        load(path)


def test_records_become_evidence_and_an_arm_that_shares_a_cell_has_it_too(tmp_path):
    run, first, second = RunFolder(tmp_path), Cell(**CELL), Cell(**CELL | {"seed": 1})
    folder = run.cell(first.id)
    folder.append({"kind": "start", "cell": first.model_dump(), "environment": ENVIRONMENT, "time": 86400.0})
    numbers = {"epoch": 1, "step": 4, "train_error": 25.0, "error": 12.5, "seconds": 1.0, "images_per_second": 64.0}
    folder.append({"kind": "epoch", **numbers})
    folder.append({"kind": "end", "status": "finished", "reason": ""})
    run.write_request(
        {"experiment": "name", "scale": "small", "command": "groupnorm run name", "last": 1}
        | {"arms": {"one": {"classes": 10}, "two": {"classes": 10}}, "cells": [first.model_dump(), second.model_dump()]}
        | {"labels": {first.id: ["one", "two"], second.id: ["two"]}}
    )
    found = summarise(run)
    assert found.head["date"] == "1970-01-02"
    assert found.head["environments"] == [{"cpu": "a processor", "gpu": None, "torch": "2"}]
    assert [(row["arm"], row["status"]) for row in found.rows] == [
        ("one", "finished"), ("two", "finished"), ("two", "pending")
    ]  # fmt: skip
    assert found.at(arm="two").to_dict() == {0: 12.5}
    assert json.loads(json.dumps(found.rows)) == found.rows


def test_a_comparison_is_not_an_experiment(tmp_path):
    run = RunFolder(tmp_path)
    run.write_request({"cells": []})
    with pytest.raises(RunFolderError, match="holds a comparison"):
        summarise(run)
