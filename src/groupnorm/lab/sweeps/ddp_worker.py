"""A process that takes its part of a cell's batches: ``python -m groupnorm.lab.sweeps.ddp_worker``.

The worker starts it (:mod:`groupnorm.lab.training.ddp`) and tells it in one line of standard input what to train. When
standard input closes, the worker is gone, and this process ends at once. It writes no records; what it prints goes
where the worker's goes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch

from groupnorm.lab.common.rng import EPOCHS, make_deterministic, seed_all
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.regimes import training
from groupnorm.lab.training.ddp import meet
from groupnorm.lab.training.setup import check_network, dataset_of


def main() -> None:
    """Train with the others until the last epoch, then wait to be ended."""
    lines = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a user's model must not read from the worker
    task = json.loads(lines.readline())
    parent = threading.Thread(target=_end_with, args=(lines,), daemon=True)
    parent.start()
    try:
        _train(task)
    except (Exception, SystemExit) as error:  # a network of the user's own may even end the process
        traceback.print_exc()
        sys.stdout.flush()
        failed = Path(task["folder"]) / f"{task['rank']}.failed"
        failed.write_text(json.dumps([type(error).__name__, str(error)]))
        os._exit(1)  # and the others see their connection to this process close
    parent.join()  # process 0 may still read what the last step sent


def _train(task: dict[str, Any]) -> None:
    cell, rank, folder = Cell(**task["cell"]), task["rank"], Path(task["folder"])
    make_deterministic()
    torch.set_num_threads(cell.threads)
    if cell.device == "cuda":
        torch.cuda.set_device(rank)
    dataset = dataset_of(cell, Path(task["data_dir"]) if task["data_dir"] else None, {})
    check_network(cell, dataset)
    run = training(cell, dataset)
    run.load_state_dict(torch.load(folder / "state.pt", map_location="cpu", weights_only=True))
    (folder / f"{rank}.ready").touch()
    meet(run, rank, folder)
    while not run.finished:
        # what a network draws, such as dropout, has to differ from process to process, and to repeat after a break
        seed_all((cell.seed * EPOCHS + run.epochs_done * 1_009 + rank) % 2**32)
        run.epoch()


def _end_with(lines: TextIO) -> None:
    """Nothing more comes; the end does when the worker is gone."""
    lines.read()
    os._exit(0)


if __name__ == "__main__":
    main()
