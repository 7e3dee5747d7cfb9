"""Records go to TensorBoard, MLflow and Weights & Biases on request: each cell once, whenever it was trained."""

import pytest

import groupnorm.lab
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.sweeps.configuration import Comparison, ConfigurationError, plan
from groupnorm.lab.sweeps.trackers import TRACKERS, open_trackers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
QUICK = {"norms": "gn", "batch_sizes": 16, "limit_train": 64, "limit_val": 32, "epochs": 2, "workers": 1}


def compare(folder, seeds, *track):
    return groupnorm.lab.compare(out=folder, seeds=seeds, progress=False, track=track, **QUICK)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was tracked from its second command on: one cell was finished before, one comes with it."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    compare(folder, 1)
    assert not [*folder.glob("tensorboard"), *folder.glob("mlflow*"), *folder.glob("wandb")], "only on request"
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
            patch.delenv(variable, raising=False)
        for _ in range(2):  # the second command has nothing to train, and nothing to log again
            result = compare(folder, 2, *TRACKERS)
    return result


def errors(result, cell):
    return list(result.curves.query("cell == @cell").error)


def test_tensorboard_has_the_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for cell in run.cells:
        events = EventAccumulator(str(run.folder / "tensorboard" / cell.id)).Reload()
        assert {"loss", "error", "train_error", "learning_rate"} <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Scalars("error")] == [4, 8]
        assert [event.value for event in events.Scalars("error")] == pytest.approx(errors(run, cell.id))


def test_mlflow_has_parameters_metrics_and_the_status(run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.folder / 'mlflow.db'}")
    logged = client.search_runs([client.get_experiment_by_name("run").experiment_id])
    assert sorted(r.data.tags["cell"] for r in logged) == sorted(cell.id for cell in run.cells)
    for one in logged:
        cell = one.data.tags["cell"]
        assert (one.data.params["norm"], one.data.tags["status"], one.info.status) == ("gn", "finished", "FINISHED")
        history = client.get_metric_history(one.info.run_id, "error")
        assert [(m.step, m.value) for m in history] == [*zip((4, 8), errors(run, cell), strict=True)]


def test_weights_and_biases_has_one_offline_run_for_each_cell(run):
    folders = [*(run.folder / "wandb").glob("offline-run-*")]
    assert sorted(folder.name.split("-", 3)[-1] for folder in folders) == sorted(cell.id for cell in run.cells)
    assert all([*folder.glob("*.wandb")] for folder in folders)


def test_a_crashed_cell_is_not_logged(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (cell,) = Comparison(**QUICK, seeds=1).cells("0" * 16)
    run = RunFolder(tmp_path / "run")
    end = {"kind": "end", "status": "crashed", "reason": "no"}
    for tracker in open_trackers(("mlflow", "wandb"), run, {cell.id: cell}, {cell.id: [end]}):
        tracker.close()
    assert not [*(tmp_path / "run" / "wandb").iterdir()]


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"unknown tracker 'mlfow'.*mlflow"):
        plan(track="mlfow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"'wandb' is not installed here; pip install 'groupnorm\[track\]'"):
        plan(track="wandb")
