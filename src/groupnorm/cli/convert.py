"""``groupnorm convert``: the norms of a model become others; a plan, or the converted weights in a file."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

import groupnorm
from groupnorm.cli.outcome import outcome
from groupnorm.conversion.checkpoint import state_dicts_in
from groupnorm.conversion.planning import needs_layer
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.import_path import resolve
from groupnorm.nn.factory import parse


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
        Path | None,
        typer.Option(help="Where the weights go: .safetensors, or .pt for a state dict.", show_default=False),
    ] = None,
) -> None:
    """Turn the norms of a model into others, and write its weights.

    The weights to begin with are those of --checkpoint; without it, torchvision: and timm: give random ones.

    Without --out, or with --plan, it says what would happen. Exit code: 0, or 2 when a norm cannot be converted, the
    model cannot be made, a file cannot be read or written, or there is nothing to convert into --out.
    """
    console = Console(emoji=False)
    with outcome():
        if needs_layer(parse(to)) and not shape:
            raise ArgumentError(
                f"--to {to} and no --input; expected the shape of an input, such as --input 1,3,224,224: the layers "
                f"before the norms are found by running it"
            )
        if out is not None and not plan:
            _check_out(out)
        network = _network(model)
        if checkpoint is not None:
            loaded = _load_into(network, checkpoint)
            if not as_json:
                console.print(str(loaded), highlight=False, markup=False, soft_wrap=True)
        count = int(groups) if groups is not None and groups.isdecimal() else groups
        found = groupnorm.plan(network, to, groups=count, where=where or None, sample_input=_input(shape))
        if as_json:
            typer.echo(found.to_json())
        elif plan or out is None:
            console.print(found)
        if plan or out is None:
            raise typer.Exit(2 if found.of("refuse") else 0)
        if not found.of("replace") and not found.of("refuse"):
            raise ArgumentError(f"nothing to convert, and {out} is not written: {found.summary}; see it with --plan")
        report = groupnorm.convert_(network, found, sample_input=_input(shape))
        _save(network, out)
        if checkpoint is None and model.startswith(("torchvision:", "timm:")):
            Console(stderr=True, emoji=False).print(
                f"The weights of {model} are random: name trained ones with --checkpoint.",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
        if not as_json:
            console.print(f"{report}\nWeights: {out}", highlight=False, markup=False, soft_wrap=True)


def _network(name: str) -> nn.Module:
    """The model of a name, with random weights, which a checkpoint or training replaces."""
    library, _, rest = name.partition(":")
    if not rest:
        raise ArgumentError(f"model {name!r}; expected torchvision:NAME, timm:NAME or package.module:factory")
    if library == "torchvision":
        from torchvision.models import get_model, get_model_builder, list_models

        if rest not in list_models():
            raise groupnorm.errors.UnknownNameError("model of torchvision", rest, list_models())
        parts = inspect.signature(get_model_builder(rest)).parameters
        random = {name: None for name in ("weights", "weights_backbone") if name in parts}  # some default to a download
        return cast(nn.Module, get_model(rest, **random))
    if library == "timm":
        try:
            import timm
        except ImportError:
            raise ArgumentError("timm is not installed; expected it for timm:NAME: pip install timm") from None
        if not timm.is_model(rest):
            raise ArgumentError(f"unknown model of timm {rest!r}; expected one of timm.list_models()")
        network: nn.Module = timm.create_model(rest)
        return network
    factory = resolve(name, "model")
    try:
        made = factory()
    except Exception as error:  # the user's function may raise anything
        raise ArgumentError(
            f"{name}() failed: {type(error).__name__}: {error}; expected a function that returns an nn.Module without "
            f"any argument"
        ) from error
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"{name}() returned {type(made).__name__}; expected an nn.Module")
    return made


def _input(shape: str) -> Tensor | None:
    """Random numbers of a shape such as "1,3,224,224"; None for ""."""
    if not shape:
        return None
    sizes = shape.split(",")
    if not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise ArgumentError(f"--input {shape!r}; expected a shape such as 1,3,224,224")
    try:
        return torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))
    except (RuntimeError, TypeError) as error:  # of the allocator, or of a number beyond int64
        raise ArgumentError(
            f"--input {shape} has more numbers than the memory takes; expected a shape that fits, such as 1,3,224,224"
        ) from error


def _load_into(network: nn.Module, path: Path) -> groupnorm.conversion.Loaded:
    """Load a file into a network."""
    state = _load(path)
    if keys := state_dicts_in(state, network.state_dict()):
        raise ArgumentError(
            f"--checkpoint {path} holds state dicts under {keys}; expected the one of the model alone: write it with "
            f"torch.save(torch.load({str(path)!r})[{keys[0]!r}], 'weights.pt')"
        )
    try:
        return groupnorm.load_checkpoint_(network, state)
    except (ArgumentError, ConversionError) as error:
        raise ArgumentError(
            f"--checkpoint {path}: {error} (change the state dict in Python, and write it with torch.save)"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArgumentError(f"--checkpoint {path} is no file; expected .safetensors, or a state dict of torch.save")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own
        raise ArgumentError(
            f"--checkpoint {path} cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}; expected "
            f".safetensors, or what torch.save(model.state_dict()) writes"
        ) from error
    if not isinstance(state, dict) or not any(isinstance(value, (Tensor, dict)) for value in state.values()):
        raise ArgumentError(f"{path} holds no state dict; expected what torch.save(model.state_dict()) writes")
    return state


def _check_out(path: Path) -> None:
    """Raise where weights could not be written, before anything is computed."""
    if path.is_dir():
        raise ArgumentError(f"--out {path} is a folder; expected a file: use --out {path / 'weights.safetensors'}")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ArgumentError(f"--out {path}; expected a name that ends with .safetensors, or .pt for a state dict")
    if not path.parent.is_dir():
        raise ArgumentError(f"--out {path}; expected a file in a folder that exists: make {path.parent} first")


def _save(model: nn.Module, path: Path) -> None:
    state = model.state_dict()
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if path.suffix == ".safetensors" and others:
        raise ArgumentError(
            f"--out {path} cannot hold {others[0]}, a {type(state[others[0]]).__name__}, for safetensors has tensors "
            f"alone; expected another format: use --out {path.with_suffix('.pt')}"
        )
    try:
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:  # of this call alone
            partial = Path(folder) / path.name
            if path.suffix == ".safetensors":
                save_model(model, str(partial))
            else:
                content = io.BytesIO()  # not into the file: torch hides what the system says
                torch.save(state, content)
                partial.write_bytes(content.getbuffer())
            partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise ArgumentError(
            f"--out {path} cannot be written: {error}; expected a folder to write in, with space: free some, or choose "
            f"another --out"
        ) from error
