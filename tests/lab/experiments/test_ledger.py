"""The ledger: every claim with what was measured, from records alone."""

import json

import pytest
from typer.testing import CliRunner

from groupnorm.cli import app
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.experiments import EXPERIMENTS
from groupnorm.lab.experiments.framework.experiment import narrow
from groupnorm.lab.experiments.ledger import RECORDS, as_json, evidence, ledger
from groupnorm.lab.experiments.runner import run
from groupnorm.lab.sweeps.configuration import Comparison
from lab.inline import inline

KEYS = {"id", "statement", "source", "published", "refuted_by", "experiment", "verdict", "effects", "scale", "date"}


def test_every_claim_is_in_the_ledger_with_all_that_it_tells():
    entries = as_json(ledger())
    assert [entry["id"] for entry in entries] == [c.id for e in EXPERIMENTS.values() for c in e.claims]
    for entry in entries:
        assert entry.keys() > KEYS
        if entry["verdict"] == "not run":
            continue
        assert (RECORDS / entry["records"]).exists()
        assert entry["machine"]
        assert entry["command"].startswith(f"groupnorm run {entry['experiment']} --scale")
        assert all(
            effect["n"] >= 3 and effect["low"] <= effect["mean"] <= effect["high"] for effect in entry["effects"]
        )


def test_the_records_of_the_package_have_at_least_three_seeds_and_no_crash():
    for path in RECORDS.glob("*.jsonl"):
        name, _, scale = path.stem.rpartition("-")
        found = evidence(name)
        assert found.head["scale"] == scale
        assert found.table["seed"].nunique() >= 3
        assert set(found.table["status"]) <= {"finished", "undefined", "diverged"}


def test_the_records_of_the_package_are_of_the_experiments_as_they_are_now():
    """Whoever changes what an experiment trains measures it anew."""
    leave_out = {"data_digest", "device"}
    for path in RECORDS.glob("*.jsonl"):
        name, _, scale = path.stem.rpartition("-")
        planned = [
            (arm, cell.model_dump(exclude=leave_out))
            for arm, parts in EXPERIMENTS[name].scale(scale).arms.items()
            for fields in parts
            for cell in Comparison(**fields).cells("")
        ]
        measured = [(row["arm"], Cell(**row["cell"]).model_dump(exclude=leave_out)) for row in evidence(name).rows]
        assert sorted(map(str, measured)) == sorted(map(str, planned)), name


def test_runs_of_ones_own_are_judged_and_smoke_is_not(tmp_path):
    with inline():
        run("batch-size", "smoke", out=tmp_path / "batch-size-smoke", progress=False)
    assert {finding.verdict for finding in ledger(tmp_path)} == {"not run"}
    (tmp_path / "batch-size-smoke").rename(tmp_path / "batch-size-small")
    measured = [finding for finding in ledger(tmp_path) if finding.evidence]
    assert {finding.experiment for finding in measured} == {"batch-size"}


@pytest.mark.parametrize("below", ["nowhere", "", "norms-small"])
def test_a_folder_without_runs_is_refused(tmp_path, below):
    (tmp_path / "norms-small").mkdir()
    runs = tmp_path / below if below else tmp_path.parent
    found = CliRunner().invoke(app, ["claims", "--runs", str(runs)])
    assert found.exit_code == 2
    assert f"{runs} holds no run of an experiment; expected a folder with the folders NAME-SCALE" in found.output


def test_the_run_of_another_version_is_refused(tmp_path):
    RunFolder(tmp_path / "norms-small").write_request({"experiment": "norms", "scale": "small", "cells": []})
    found = CliRunner().invoke(app, ["claims", "--runs", str(tmp_path)])
    assert found.exit_code == 2
    assert "run.json lacks command, last, arms, labels; expected what this version" in found.output


def test_the_largest_scale_that_was_run_is_judged(tmp_path):
    request = {"experiment": "norms", "command": "", "last": 1, "arms": {}, "labels": {}, "cells": []}
    for scale in ("small", "full"):
        RunFolder(tmp_path / f"norms-{scale}").write_request(request | {"scale": scale})
    assert evidence("norms", tmp_path).head["scale"] == "full"


def test_it_prints_a_table_and_json():
    printed = CliRunner().invoke(app, ["claims", "--json"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == json.loads(json.dumps(as_json(ledger())))
    table = CliRunner().invoke(app, ["claims"], env={"COLUMNS": "160"})
    assert table.exit_code == 0
    assert "reproduced" in table.stdout


def test_experiments_are_listed():
    listed = CliRunner().invoke(app, ["ls", "experiments"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in EXPERIMENTS)


def test_group_norm_has_eight_groups_in_narrow_networks():
    assert narrow("bn", "gn", "ws+gn", "gn:4", "gbgn") == ("bn", "gn:8", "ws+gn:8", "gn:4", "gbgn")
