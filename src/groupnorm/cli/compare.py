"""``groupnorm compare``: train the same network with each norm over batch sizes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import groupnorm.lab
from groupnorm.cli.outcome import outcome
from groupnorm.lab.sweeps.configuration import Comparison

_DEFAULT = {name: field.default for name, field in Comparison.model_fields.items()}


def _list(name: str) -> str:
    return ",".join(str(value) for value in _DEFAULT[name])


def compare(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name; folder:PATH with PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg; or package.module:function.",
            show_default=f"{_DEFAULT['dataset']}, or that of the task",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Name or package.module:factory.", show_default=f"{_DEFAULT['model']}, or that of the task"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Name or package.module:Class.", show_default="classification")
    ] = None,
    regime: Annotated[str, typer.Option(help="Name or package.module:Class.")] = _DEFAULT["regime"],
    options: Annotated[
        str, typer.Option(help="Further options of task and regime: name=value,name=value.", show_default=False)
    ] = "",
    norms: Annotated[
        str,
        typer.Option(help="Comma-separated specs, such as gn, gn:8, ws+gn; all: every norm that replaces batch norm."),
    ] = _list("norms"),
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated images per step.")] = _list("batch_sizes"),
    normalization_batch: Annotated[
        str,
        typer.Option(help="Images that share batch statistics, instead of the whole batch.", show_default=False),
    ] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = _DEFAULT["seeds"],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = _DEFAULT["epochs"],
    learning_rate: Annotated[
        float, typer.Option(help="For 32 images; scaled in proportion to the batch size.")
    ] = _DEFAULT["learning_rate"],
    optimizer: Annotated[str, typer.Option(help="sgd, adamw, or package.module:function.")] = _DEFAULT["optimizer"],
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = _DEFAULT["momentum"],
    weight_decay: Annotated[float, typer.Option(help="Of SGD and AdamW.")] = _DEFAULT["weight_decay"],
    schedule: Annotated[str, typer.Option(help="Of the learning rate: cosine or step.")] = _DEFAULT["schedule"],
    warmup_epochs: Annotated[float, typer.Option(help="Epochs in which the learning rate rises from zero.")] = _DEFAULT[
        "warmup_epochs"
    ],
    augment: Annotated[
        str, typer.Option(help="Of each training image: none, cifar, imagenet, or package.module:function.")
    ] = _DEFAULT["augment"],
    limit_train: Annotated[int | None, typer.Option(help="Use this many training images.")] = None,
    limit_val: Annotated[int | None, typer.Option(help="Use this many validation images.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize images to squares of this side, in pixels.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the datasets lie; $GROUPNORM_DATA_DIR or ~/.cache/groupnorm unless given.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = _DEFAULT["device"],
    precision: Annotated[str, typer.Option(help="fp32, or bf16 (autocast).")] = _DEFAULT["precision"],
    threads: Annotated[int, typer.Option(help="CPU threads of each worker.")] = _DEFAULT["threads"],
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes; unless given, one for each --threads cores, and one on a GPU.", show_default=False
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="Processes that share each batch, on a GPU or --threads cores each.")
    ] = _DEFAULT["processes"],
    scheduler: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster; unless given, the one of this machine.", show_default=False),
    ] = None,
    slurm: Annotated[
        str, typer.Option(help="Parameters of Slurm's jobs: slurm_partition=gpu,mem_gb=16.", show_default=False)
    ] = "",
    track: Annotated[str, typer.Option(help="Also log to any of tensorboard, mlflow, wandb.", show_default=False)] = "",
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/DATASET-MODEL unless given.", show_default=False)
    ] = None,
) -> None:
    """Train the same network with each norm over batch sizes, and show who survives.

    The learning rate is proportional to the batch size and the number of epochs is the same, as in Wu & He 2018.
    The same command goes on where an interrupted one stopped. Exit code: 0, or 1 when a cell diverged or crashed,
    2 when the configuration is wrong or the folder cannot be used, 130 when interrupted, 143 when terminated.
    """
    asked: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    asked["normalization_batches"] = asked.pop("normalization_batch")
    run(asked.pop("out", None), asked)


def run(out: Path | None, options: dict[str, Any]) -> None:
    """Run the comparison and its report, and turn the outcome into messages and an exit code."""
    console, errors = Console(emoji=False), Console(stderr=True, emoji=False)
    begin = time.monotonic()
    with outcome():
        result = groupnorm.lab.compare(out=out, **options)
        report = result.report()
    failed = result.table[result.table.status.isin(["diverged", "crashed"])]
    for row in failed.itertuples():
        errors.print(f"{row.cell} {row.status}: {row.reason}", markup=False, highlight=False, soft_wrap=True)
    minutes, seconds = divmod(round(time.monotonic() - begin), 60)
    console.print(f"{len(result.cells)} cells in {minutes} min {seconds} s.", highlight=False)
    if note := (result.request.get("dataset") or {}).get("note"):
        console.print(f"Data: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Report: {report}", highlight=False, markup=False, soft_wrap=True)
    if len(failed):
        raise typer.Exit(1)
