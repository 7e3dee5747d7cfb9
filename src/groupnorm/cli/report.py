"""``groupnorm report``: write the report of a run again, also of an unfinished one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from groupnorm.files import RunFolderError


def report(folder: Annotated[Path, typer.Argument(help="The --out of groupnorm compare.")]) -> None:
    """Write the report, the figures and the tables of a finished or unfinished run from its records."""
    from groupnorm.lab.api import load

    try:
        path = load(folder).report()
    except RunFolderError as error:
        Console(stderr=True, emoji=False).print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    Console(emoji=False).print(f"Report: {path}", highlight=False, markup=False, soft_wrap=True)
