"""MLflow: one run per cell, written when the cell has ended. https://mlflow.org/docs/latest/ml/tracking/."""

from __future__ import annotations

import os
import time

from groupnorm.lab.common.store import Record, RunFolder
from groupnorm.lab.common.text import readable
from groupnorm.lab.common.trial import Cell


class MLflow:
    """Logs to ``$MLFLOW_TRACKING_URI``, or else to ``mlflow.db`` in the run folder.

    The folder's name is the experiment, the cell's configuration are the parameters, the numbers of each epoch the
    metrics. A cell that the experiment holds already is not logged again.
    """

    def __init__(self, run: RunFolder) -> None:
        from mlflow import MlflowClient

        self.run = run
        folder = run.path.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(folder.name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(folder.name)
        self._logged: set[str] = set()
        page = None
        while page is None or page.token:
            page = self._client.search_runs([self._experiment], page_token=page.token if page else None)
            self._logged |= {run.data.tags["cell"] for run in page if run.info.status == "FINISHED"}

    def add(self, cell: Cell, record: Record) -> None:
        """Log the whole cell with its last record, unless it crashed: it will be tried again."""
        from mlflow.entities import Metric, Param

        if record["kind"] != "end" or record["status"] == "crashed" or cell.id in self._logged:
            return
        tags = {"cell": cell.id, "status": record["status"], "reason": record["reason"]}
        run_id = self._client.create_run(self._experiment, run_name=cell.id, tags=tags).info.run_id
        parameters = [Param(name, str(value)) for name, value in readable(cell.model_dump()).items()]
        self._client.log_batch(run_id, params=parameters)
        now = int(1000 * time.time())
        for epoch in self.run.cell(cell.id).records():
            if epoch["kind"] == "epoch":
                numbers = {k: float(v) for k, v in epoch.items() if isinstance(v, int | float) and k != "step"}
                metrics = [Metric(name, value, now, epoch["step"]) for name, value in numbers.items()]
                self._client.log_batch(run_id, metrics=metrics)
        self._client.set_terminated(run_id)
        self._logged.add(cell.id)

    def close(self) -> None:
        """Everything is written already."""
