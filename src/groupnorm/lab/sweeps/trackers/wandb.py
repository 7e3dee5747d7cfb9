"""Weights & Biases: one run per cell, written when the cell has ended. https://docs.wandb.ai/ref/python/."""

from __future__ import annotations

import os

from groupnorm.lab.common.store import Record, RunFolder
from groupnorm.lab.common.text import readable
from groupnorm.lab.common.trial import Cell


class WeightsAndBiases:
    """Logs into ``wandb/`` of the run folder, offline unless ``$WANDB_MODE`` says otherwise; `wandb sync` uploads it.

    The folder's name is the project, unless ``$WANDB_PROJECT`` is set. A cell that was logged is not logged again.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.folder = run.path / "wandb"
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, cell: Cell, record: Record) -> None:
        """Log the whole cell with its last record, unless it crashed: it will be tried again."""
        import wandb

        done = self.folder / f"{cell.id}.logged"
        if record["kind"] != "end" or record["status"] == "crashed" or done.exists():
            return
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.run.path.absolute().name,
            id=cell.id,
            name=cell.id,
            group=f"{cell.norm} {cell.batch_size}",
            config=readable(cell.model_dump()),
            dir=self.run.path,
            mode=os.environ.get("WANDB_MODE") or "offline",  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )
        for epoch in self.run.cell(cell.id).records():
            if epoch["kind"] == "epoch":
                run.log({k: v for k, v in epoch.items() if isinstance(v, int | float)}, step=epoch["step"])
        run.summary["status"] = record["status"]
        run.finish()
        done.touch()

    def close(self) -> None:
        """Everything is written already."""
