"""``groupnorm convert``: the norms of a model become others; a plan, or the converted weights in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

import groupnorm
from groupnorm.errors import ArgumentError
from groupnorm.lab.cli.outcome import outcome
from groupnorm.lab.resolve import resolve


def convert(
    model: Annotated[str, typer.Argument(help="torchvision:resnet50, timm:NAME, or package.module:factory.")],
    to: Annotated[str, typer.Option(help="What its norms become: gn, gn:8, ws+gn, bn, ...")] = "gn",
    groups: Annotated[
        str | None, typer.Option(help="A number, c16 (channels a group) or auto.", show_default=False)
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only norms whose path fits this glob; may be repeated.", show_default=False),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            "--input",
            help="Shape of an input, such as 1,3,224,224: run once, to see what the norms see.",
            show_default=False,
        ),
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to begin with: .safetensors, or a state dict of torch.save.", show_default=False),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would happen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan for machines.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where the weights go: a .safetensors file.", show_default=False)
    ] = None,
) -> None:
    """Turn the norms of a model into others, and write its weights.

    Without --out, or with --plan, it says what would happen. Exit code: 0, or 2 when a norm cannot be converted or the
    model cannot be made.
    """
    console = Console()
    with outcome():
        network = _network(model)
        if checkpoint is not None:
            console.print(str(groupnorm.load_checkpoint_(network, _load(checkpoint))), highlight=False, soft_wrap=True)
        count = int(groups) if groups is not None and groups.isdigit() else groups
        found = groupnorm.plan(network, to, groups=count, where=where or None, sample_input=_input(shape))
        if as_json:
            typer.echo(found.to_json())
        elif plan or out is None:
            console.print(found)
        if plan or out is None:
            raise typer.Exit(2 if found.of("refuse") else 0)
        report = groupnorm.convert_(network, found, sample_input=_input(shape))
        _save(network, out)
        if not as_json:
            console.print(f"{report}\nWeights: {out}", highlight=False, markup=False, soft_wrap=True)


def _network(name: str) -> nn.Module:
    """The model of a name, with random weights, which a checkpoint or training replaces."""
    library, _, rest = name.partition(":")
    if not rest:
        raise ArgumentError(f"model {name!r}; expected torchvision:NAME, timm:NAME or package.module:factory")
    if library == "torchvision":
        from torchvision.models import get_model, list_models

        if rest not in list_models():
            raise groupnorm.errors.UnknownNameError("model of torchvision", rest, list_models())
        return cast(nn.Module, get_model(rest, weights=None))
    if library == "timm":
        try:
            import timm
        except ImportError:
            raise ArgumentError("timm is not installed; expected it for timm:NAME: pip install timm") from None
        if not timm.is_model(rest):
            raise ArgumentError(f"unknown model of timm {rest!r}; expected one of timm.list_models()")
        network: nn.Module = timm.create_model(rest)
        return network
    made = resolve(name, "model")()
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"{name}() returned {type(made).__name__}; expected an nn.Module")
    return made


def _input(shape: str) -> Tensor | None:
    """Random numbers of a shape such as "1,3,224,224"; None for ""."""
    if not shape:
        return None
    sizes = shape.split(",")
    if not all(size.strip().isdigit() for size in sizes):
        raise ArgumentError(f"--input {shape!r}; expected a shape such as 1,3,224,224")
    return torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArgumentError(f"{path} holds no state dict; expected what torch.save(model.state_dict()) writes")
    return state


def _save(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_model

    if path.suffix != ".safetensors":
        raise ArgumentError(f"--out {path}; expected a name that ends with .safetensors")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_model(model, str(partial))
    partial.replace(path)
