"""Run folders with made-up but deterministic numbers, for the tests of the pure views."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from groupnorm.lab.api import Result
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell

TIMING = frozenset({"time", "seconds", "images_per_second"})
"""Keys of a record that differ between two runs of the same cell; all others repeat bit for bit."""


ENVIRONMENT = {
    "groupnorm": "0.1.0",
    "revision": "0123456789ab",
    "python": "3.12.1",
    "torch": "2.11.0",
    "platform": "Linux x86_64",
    "cpu": "Example CPU @ 2.0 GHz",
    "cores": 2,
    "gpu": None,
}
BN = {32: 1.5, 16: 1.6, 8: 1.7, 4: 2.0, 2: 58.1}
LN = {32: 3.1, 16: 3.4, 8: 3.9, 4: 4.6, 2: 5.8}
UNDEFINED = "input (2, 64, 1, 1) with num_groups=64 has 1 element per group, so the output is the bias"

Ending = Callable[[Cell], tuple[str, str]]


def finished(cell: Cell) -> tuple[str, str]:
    return ("undefined", UNDEFINED) if cell.norm == "in" else ("finished", "")


def final_error(cell: Cell) -> float:
    """The mean error that the numbers of a cell scatter around."""
    if cell.norm == "bn":
        return BN.get(cell.statistics_batch, 3.0)
    if cell.norm == "ln":
        return LN.get(cell.statistics_batch, 4.0)
    return 2.0 if cell.norm == "gn" else 2.2 + sum(map(ord, cell.norm)) % 29 / 10


def make_cell(norm: str, batch_size: int, seed: int, **fields: Any) -> Cell:
    values: dict[str, Any] = {
        "dataset": "digits",
        "data_digest": "c0ffee",
        "model": "resnet-tiny",
        "normalization_batch": None,
        "epochs": 5,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "limit_train": None,
        "limit_val": None,
        "image_size": None,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
    }
    return Cell(**values | fields | {"norm": norm, "batch_size": batch_size, "seed": seed})


def make_run(
    path: Path,
    *,
    norms: Sequence[str] = ("bn", "gn", "ln", "in"),
    batch_sizes: Sequence[int] = (32, 16, 8, 4, 2),
    seeds: int = 3,
    ending: Ending = finished,
    cells: Iterable[Cell] | None = None,
    **request: Any,
) -> Result:
    """Write a run folder and load it.

    Args:
        path: the folder.
        norms, batch_sizes, seeds: the grid.
        ending: status and reason of a cell; "running" stops it half way and "pending" before it starts.
        cells: instead of the grid.
        **request: replaces keys of run.json.
    """
    grid = (make_cell(norm, size, seed) for norm in norms for size in batch_sizes for seed in range(seeds))
    asked = list(grid if cells is None else cells)
    run = RunFolder(path)
    dataset = {
        "name": "digits",
        "note": "1,797 scanned digits of 8x8 pixels from the UCI repository; small, and not comparable with MNIST.",
        "train": 1437,
        "val": 360,
        "classes": 10,
    }
    base = {
        "command": "groupnorm compare --dataset digits --norms bn,gn,ln,in --out runs/digits",
        "config": {"dataset": "digits", "norms": list(norms), "batch_sizes": list(batch_sizes), "seeds": seeds},
        "dataset": dataset,
        "cells": [cell.model_dump() for cell in asked],
    }
    run.write_request(base | request)
    for cell in asked:
        _write_cell(run, cell, *ending(cell))
    return Result(path)


def _write_cell(run: RunFolder, cell: Cell, status: str, reason: str) -> None:
    if status == "pending":
        return
    folder = run.cell(cell.id)
    folder.append({"kind": "start", "cell": cell.model_dump(), "environment": ENVIRONMENT, "time": 1.7e9})
    epochs = {"finished": cell.epochs, "undefined": 0}.get(status, cell.epochs // 2)
    for epoch in range(1, epochs + 1):
        folder.append(_epoch(cell, epoch))
    if status != "running":
        folder.append({"kind": "end", "status": status, "reason": reason})


def _epoch(cell: Cell, epoch: int) -> dict[str, Any]:
    chance = random.Random(f"{cell.norm} {cell.batch_size} {cell.normalization_batch} {cell.seed} {epoch}")
    final = final_error(cell)
    falling = (80 - 0.9 * final) * math.exp(-1.6 * epoch) * (epoch < cell.epochs)
    error = max(0.1, final + falling + chance.gauss(0, 0.05 * final + 0.06))
    seconds = (2.2 + 22 / cell.batch_size) * (1.0 if cell.norm == "bn" else 1.2) * chance.uniform(0.96, 1.04)
    return {
        "kind": "epoch",
        "epoch": epoch,
        "step": epoch * (1437 // cell.batch_size),
        "loss": error / 30,
        "train_error": round(error * 0.6, 4),
        "error": round(error, 4),
        "learning_rate": 0.1 * cell.batch_size / 32,
        "seconds": round(seconds, 3),
        "images_per_second": round(1437 / seconds, 1),
    }
