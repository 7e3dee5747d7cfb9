"""``groupnorm bench``: how fast the kernels are, how exact, and against whom."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from groupnorm.cli.outcome import outcome


class What(StrEnum):
    """What is done."""

    CASES = "cases"
    MODELS = "models"
    PAGE = "page"


def bench(
    what: Annotated[
        What, typer.Argument(help="Norms by themselves, whole models before and after, or the page of all results.")
    ] = What.CASES,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shapes: Annotated[
        str,
        typer.Option(
            help="Of norms, comma-separated: unet, vae, video, resnet, rcnn, medical, flat, or own such as 2x8x16x16:4."
        ),
    ] = "all",
    dtypes: Annotated[str, typer.Option(help="Comma-separated: fp32, bf16, fp16.")] = "fp32,bf16",
    layouts: Annotated[
        str, typer.Option(help="Comma-separated: contiguous, channels-last.")
    ] = "contiguous,channels-last",
    activations: Annotated[
        str, typer.Option(help="Comma-separated: none, relu, silu, gelu, gelu_tanh.")
    ] = "none,relu,silu",
    peers: Annotated[
        str, typer.Option(help="Comma-separated: torch, compile, liger; torch always takes part.")
    ] = "torch,compile,liger",
    threads: Annotated[int, typer.Option(help="Of the CPU.", min=1)] = 2,
    seconds_per_case: Annotated[
        float, typer.Option(help="Of timing; at least five rounds, or three long ones, are made.", min=0.0)
    ] = 12.0,
    huge: Annotated[bool, typer.Option("--huge", help="Also the input of more than 2^31 elements.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is measured.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Wait until the machine does nothing else; again what was disturbed.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results, a file for each device.")] = Path("bench/results"),
    page: Annotated[Path, typer.Option(help="Where `page` goes, with its pictures beside it.")] = Path("docs/speed.md"),
) -> None:
    """Check norms against float64, then time them against PyTorch, torch.compile, Liger-Kernel and a copy.

    A kernel that is wrong is not timed. All take turns within each round. Results are kept as they come: the same
    command goes on where an interrupted one stopped, and measures again what was measured with other kernels or another
    PyTorch. Exit code: 0, or 1 when a kernel was refused, 2 when an argument is wrong, 130 when interrupted.
    """
    import torch

    from groupnorm.bench import bounds, cases, conduct, judge, show
    from groupnorm.bench.contenders import PEERS
    from groupnorm.bench.networks import names_on
    from groupnorm.bench.page import write
    from groupnorm.bench.store import CASES, MODELS, load_all, results

    console = Console(emoji=False)
    with outcome():
        if what is What.PAGE:
            write(page, load_all(out))
            console.print(f"Page: {page}", highlight=False, markup=False, soft_wrap=True)
            return
        chosen_dtypes = cases.names_of("dtype", dtypes, tuple(cases.DTYPES))
        every = cases.grid(
            cases.find_shapes(shapes) + [cases.HUGE] * huge,
            chosen_dtypes,
            cases.names_of("layout", layouts, cases.LAYOUTS),
            cases.names_of("activation", activations, cases.ACTIVATIONS),
        )
        taking_part = cases.names_of("peer", peers, tuple(PEERS))
        how = conduct.How(seconds_per_case, fresh, quiet, console)
        found = results(out, device, threads)
        torch.set_num_threads(threads)
        if what is What.MODELS:
            keys = [f"{name} {dtype}" for name in names_on(device) for dtype in chosen_dtypes]
            conduct.run_models(found, keys, how)
        else:
            keys = [case.key for case in every]
            conduct.run_cases(found, every, taking_part, how)
            if judge.measured(found):
                console.print(show.targets(judge.judge(found)))
            if rows := bounds.bounds(found):
                console.print(show.what_bounds(rows))
    entries = [found[MODELS if what is What.MODELS else CASES].get(key, {}) for key in keys]
    if noisy := sum(map(show.disturbed, entries)):
        console.print(f"Other work on this machine disturbed {noisy} of {len(keys)}; --quiet measures them again.")
    console.print(f"Results: {found.path}", highlight=False, markup=False, soft_wrap=True)
    if any(entry.get("status") == "refused" for entry in entries):
        raise typer.Exit(1)
