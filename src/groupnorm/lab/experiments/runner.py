"""Run an experiment of the literature at one of its scales."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from groupnorm.errors import UnknownNameError
from groupnorm.lab import tasks
from groupnorm.lab.common.metric import ERROR
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.experiments import EXPERIMENTS
from groupnorm.lab.experiments.framework.evidence import FILE, Evidence, summarise
from groupnorm.lab.experiments.framework.experiment import SCALES, Experiment
from groupnorm.lab.plots.style import encode, house_style
from groupnorm.lab.sweeps.configuration import Comparison, ConfigurationError, plan
from groupnorm.lab.sweeps.runner import run_trials
from groupnorm.lab.tasks import Data

Arms = dict[str, list[tuple[Comparison, Data]]]
"""The comparisons of each arm with their data."""


def run(
    name: str, scale: str = "small", *, out: Path | str | None = None, progress: bool = True, **options: Any
) -> Evidence:
    """Run an experiment, draw its picture and return what was found.

    Everything is recorded in a folder as it happens, and the same call goes on where an interrupted one stopped.

    Args:
        name: as ``groupnorm ls experiments`` lists it.
        scale: "smoke", "small" or "full".
        out: the run's folder. Default: ``runs/NAME-SCALE`` below the current folder.
        progress: show a live table.
        **options: of :class:`groupnorm.lab.sweeps.configuration.Comparison`, in place of those of all arms: ``seeds``,
            ``data_dir``, ``device``, ``workers``, ``threads``, ``precision``, ``processes``, ...

    Raises:
        UnknownNameError: there is no such experiment or scale.
        ConfigurationError: lists every problem of every arm, before anything trains.
        RunFolderError: another process is writing to the folder.
    """
    experiment = find(name)
    if scale not in SCALES:
        raise UnknownNameError("scale", scale, SCALES)
    given = {key: value for key, value in options.items() if value is not None}
    arms = _plan(experiment, scale, given)
    folder = RunFolder(out if out is not None else Path("runs") / f"{name}-{scale}")
    with folder.lock():
        cells, labels = _cells(arms)
        planned = [pair for pairs in arms.values() for pair in pairs]
        first = planned[0][0]
        request = {
            "command": shlex.join(["groupnorm", "run", name, "--scale", scale, *_flags(given)]),
            "experiment": name,
            "task": tasks.find(first.task).record.as_json(),
            "scale": scale,
            "last": experiment.scale(scale).last,
            "arms": {arm: _about(*pairs[0]) for arm, pairs in arms.items()},
            "labels": labels,
        }
        run_trials(
            cells,
            request,
            folder,
            samples={dataset.digest: len(dataset.train_targets) for _, dataset in planned},
            how=first,
            labels={cell: arms[0] for cell, arms in labels.items()} if len(arms) > 1 else None,
            progress=progress,
        )
        evidence = summarise(folder)
        evidence.save(folder.path / FILE)
        draw(experiment, evidence, folder)
    return evidence


def find(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        UnknownNameError: there is none; lists the known ones.
    """
    if name not in EXPERIMENTS:
        raise UnknownNameError("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def draw(experiment: Experiment, evidence: Evidence, run: RunFolder) -> Path:
    """Write the experiment's picture as ``figure.png`` and ``figure.svg`` and return the first's path."""
    with house_style():
        figure = experiment.figure(evidence)
    run.write("figure.svg", encode(figure, "svg"))
    return run.write("figure.png", encode(figure, "png"))


def _plan(experiment: Experiment, scale: str, options: dict[str, Any]) -> Arms:
    arms: Arms = {}
    problems: list[str] = []
    for arm, parts in experiment.scale(scale).arms.items():
        for fields in parts:
            try:
                arms.setdefault(arm, []).append(plan(**{**fields, **options}))
            except ConfigurationError as error:
                problems += [f"{arm}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    return arms


def _cells(arms: Arms) -> tuple[list[Cell], dict[str, list[str]]]:
    """All cells, each once, and the arms that each belongs to by its id."""
    cells: dict[str, Cell] = {}
    labels: dict[str, list[str]] = {}
    for arm, pairs in arms.items():
        for comparison, dataset in pairs:
            for cell in comparison.cells(dataset.digest, comparison.model_digests(dataset)):
                cells[cell.id] = cell
                labels.setdefault(cell.id, []).append(arm)
    return list(cells.values()), labels


def _about(comparison: Comparison, dataset: Data) -> dict[str, Any]:
    task = tasks.find(comparison.task)
    return {
        "dataset": dataset.name,
        "note": dataset.note,
        "train": len(dataset.train_targets),
        "val": len(dataset.val_targets),
        **({"classes": dataset.outputs} if task.metric == ERROR else {}),
        "model": comparison.model,
        "chance": float(f"{task.chance(dataset):.6g}"),  # as evidence is rounded
    }


def _flags(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
