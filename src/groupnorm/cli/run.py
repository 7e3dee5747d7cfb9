"""``groupnorm run``: run an experiment of the literature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from groupnorm.cli.claims import findings_table
from groupnorm.cli.outcome import outcome


def run(
    name: Annotated[str, typer.Argument(help="See groupnorm ls experiments.", show_default=False)],
    scale: Annotated[str, typer.Option(help="smoke, small or full.")] = "small",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, in place of the scale's.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the datasets lie; $GROUPNORM_DATA_DIR or ~/.cache/groupnorm unless given.", show_default=False
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, or bf16 (autocast).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each worker.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that share each batch, on a GPU or --threads cores each.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="local, ray or slurm.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster; unless given, the one of this machine.", show_default=False),
    ] = None,
    slurm: Annotated[
        str | None, typer.Option(help="Parameters of Slurm's jobs: slurm_partition=gpu,mem_gb=16.", show_default=False)
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="Also log to any of tensorboard, mlflow, wandb.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/NAME-SCALE unless given.", show_default=False)
    ] = None,
) -> None:
    """Run an experiment of the literature at one of its scales, and say what it says about its claims.

    The same command goes on where an interrupted one stopped. Exit code: 0, or 1 when a cell crashed, 2 when the
    configuration is wrong or the folder cannot be used, 130 when interrupted, 143 when terminated.
    """
    from groupnorm.lab.experiments.framework.claim import judge
    from groupnorm.lab.experiments.runner import find
    from groupnorm.lab.experiments.runner import run as run_experiment

    options: dict[str, Any] = {
        "seeds": seeds, "data_dir": data_dir, "device": device, "precision": precision, "threads": threads,
        "workers": workers, "processes": processes, "scheduler": scheduler, "address": address,
        "slurm": slurm, "track": track,
    }  # fmt: skip
    console = Console(emoji=False)
    with outcome():
        folder = out if out is not None else Path("runs") / f"{name}-{scale}"
        evidence = run_experiment(name, scale, out=folder, **options)
    findings = [judge(claim, name, evidence) for claim in find(name).claims]
    console.print(findings_table(name, findings))
    if scale == "smoke":
        console.print("The scale smoke shows that all runs; it is too small for a verdict: take --scale small.")
    console.print(f"Picture: {folder / 'figure.png'}", highlight=False, markup=False, soft_wrap=True)
    crashed = [row for row in evidence.rows if row["status"] == "crashed"]
    for row in crashed:
        console.print(f"crashed: {row['reason']}", style="red", markup=False, soft_wrap=True)
    if crashed:
        raise typer.Exit(1)
