"""The second task: a table, a perceptron, and the root mean square error, through the whole of the lab."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from typer.testing import CliRunner

from groupnorm.cli import app
from groupnorm.errors import UnknownNameError
from groupnorm.lab import ConfigurationError, compare, load
from groupnorm.lab.common.metric import TaskRecord
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import DataError
from groupnorm.lab.data.table import load_table
from groupnorm.lab.regimes import training
from groupnorm.lab.sweeps.configuration import Comparison, plan
from groupnorm.lab.tasks import TASKS, find
from lab.inline import inline

QUICK = {"task": "regression", "learning_rate": 0.02, "seeds": 2, "epochs": 2, "progress": False}


def test_the_table_has_the_numbers_of_scikit_learn():
    table = load_table("diabetes")
    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    assert (table.train_inputs.shape, table.val_inputs.shape) == ((332, 10), (110, 10))
    rows = torch.cat([table.train_inputs, table.val_inputs]).sort(0).values
    torch.testing.assert_close(rows, torch.from_numpy(np.sort(inputs, 0)).float())
    assert table.train_targets.mean().abs() < 1e-6
    assert table.train_targets.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert targets.std() == pytest.approx(table.target_std, rel=0.1)
    standard = table.batch(table.train_inputs)
    torch.testing.assert_close(standard.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    assert load_table("diabetes").digest == table.digest
    assert load_table("diabetes", limit_train=50).digest != table.digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            lambda: (np.zeros((4, 3)), np.arange(4.0)),
            "expected \\(train_inputs, train_targets, val",
        ),
        (lambda: (np.zeros((4, 3)), np.arange(3.0), np.zeros((4, 3)), np.arange(4.0)), "4 rows have 3 targets"),
        (lambda: (np.zeros((4, 3)), np.ones(4), np.zeros((4, 3)), np.ones(4)), "all 4 training targets are 1"),
        (
            lambda: (np.zeros((4, 3)), np.arange(4.0), np.zeros((4, 2)), np.ones(4)),
            "3 columns in training and 2",
        ),
        (lambda: (np.full((4, 3), np.nan), np.arange(4.0), np.zeros((4, 3)), np.ones(4)), "expected finite numbers"),
        (lambda: (np.zeros(4), np.arange(4.0), np.zeros((4, 3)), np.ones(4)), "train_inputs has shape \\(4,\\)"),
    ],
)
def test_a_function_that_gives_no_table_is_told(arrays, message, tmp_path, monkeypatch):
    (tmp_path / "own_table.py").write_text("def make():\n    return ARRAYS\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_table", raising=False)
    import own_table

    own_table.ARRAYS = arrays()
    with pytest.raises(DataError, match=message):
        load_table("own_table:make")


def test_an_unknown_table_is_told():
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'diabetis'.*did you mean 'diabetes'"):
        load_table("diabetis")


def make_run(norm="ln", **fields):
    comparison, dataset = plan(
        task="regression", norms=norm, batch_sizes=16, learning_rate=0.02, seeds=1, epochs=2, **fields
    )
    return training(comparison.cells(dataset.digest)[0], dataset)


def test_the_metric_is_the_root_mean_square_error_in_the_unit_of_the_targets():
    run = make_run()
    record = run.epoch()
    data = run.dataset
    with torch.no_grad():
        predicted = run.model(data.batch(data.val_inputs))
    error = ((predicted - data.val_targets) * data.target_std).square().mean().sqrt()
    assert record["rmse"] == pytest.approx(error.item(), rel=1e-5)
    assert record["metric"] == "rmse"
    assert record["rows_per_second"] > 0
    assert "error" not in record


def test_chance_is_the_error_of_the_mean():
    data = load_table("diabetes")
    expected = (data.val_targets * data.target_std).square().mean().sqrt()
    assert find("regression").chance(data) == pytest.approx(expected.item(), rel=1e-5)


def test_a_resumed_run_is_an_unbroken_one():
    whole, broken = make_run("bn"), make_run("bn")
    records = [whole.epoch(), whole.epoch()]
    first = broken.epoch()
    again = make_run("bn")
    again.load_state_dict(broken.state_dict())
    timing = {"seconds", "rows_per_second"}
    kept = [{k: v for k, v in record.items() if k not in timing} for record in (*records, first, again.epoch())]
    assert kept[:2] == kept[2:]


def test_it_runs_through_compare_and_its_report(tmp_path):
    with inline():
        result = compare(norms=["bn", "gn", "ln", "in"], batch_sizes=[32, 4], out=tmp_path, **QUICK)
    table = result.table
    assert list(table.columns[:9]) == [
        *("norm", "batch_size", "normalization_batch", "seed", "cell", "status", "reason", "rmse", "train_rmse")
    ]
    assert set(table[table.norm == "in"].status) == {"undefined"}, "a row has one element for each channel"
    assert set(table[table.norm != "in"].status) == {"finished"}
    assert table.rmse.dropna().between(20, 200).all()
    assert (table.best_rmse.dropna() <= table.rmse.dropna()).all()
    assert set(result.summary.columns) >= {"rmse", "rmse_low", "train_rmse", "rows_per_second"}
    assert set(result.differences.columns) >= {"rmse", "baseline_rmse", "difference"}
    page = result.report().read_text()
    assert "Validation RMSE over batch size" in page
    assert "Training rows per second" in page
    for foreign in ("in percent", "points", "images per second", "% of error", "Validation error"):
        assert foreign not in page.partition('<script type="application/json"')[0], foreign
    assert (
        (tmp_path / "table.csv")
        .read_text()
        .startswith("norm,batch_size,normalization_batch,seed,cell,status,reason,rmse")
    )
    request = json.loads((tmp_path / "run.json").read_text())
    assert TaskRecord.of(request) == TASKS["regression"].record
    assert request["task"]["chance"] == pytest.approx(find("regression").chance(load_table("diabetes")))
    again = load(tmp_path)
    assert again.table.equals(table)
    with inline():
        assert compare(norms=["bn", "gn", "ln", "in"], batch_sizes=[32, 4], out=tmp_path, **QUICK).table.equals(table)


def test_the_command_line_has_it(tmp_path):
    arguments = "--task regression --norms ln,none --batch-sizes 32 --seeds 1 --epochs 1 --workers 1".split()  # noqa: SIM905
    found = CliRunner().invoke(app, ["compare", *arguments, "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert "validation RMSE over batch size" in found.output
    assert set(load(tmp_path).table.status) == {"finished"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, "task: regression takes no image_size"),
        ({"augment": "cifar"}, "task: regression takes no augment"),
        ({"model": "resnet-tiny"}, "cannot take rows of shape"),
        ({"dataset": "digits"}, "unknown dataset 'digits'"),
        ({"batch_sizes": [400]}, "400 is more than the 332 training rows"),
        ({"regime": "adversarial"}, "'adversarial' is a regime of classification; regression does not have it"),
    ],
)
def test_what_it_does_not_take_is_told_before_anything_trains(options, message):
    with pytest.raises(ConfigurationError, match=message):
        plan(**{"task": "regression"} | options)


def test_dataset_and_model_are_those_of_the_task_unless_named():
    assert (Comparison(task="regression").dataset, Comparison(task="regression").model) == ("diabetes", "mlp-small")
    assert Comparison(task="regression", model="resnet20").model == "resnet20"
    assert Comparison().dataset == "digits"


def test_its_trials_have_identities_of_their_own():
    comparison, dataset = plan(task="regression", norms="gn", batch_sizes=16, seeds=1)
    cell = comparison.cells(dataset.digest)[0]
    assert cell.task == "regression"
    assert Cell(**cell.model_dump()).id == cell.id
    assert cell.model_copy(update={"task": None}).id != cell.id
