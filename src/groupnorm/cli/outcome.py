"""How a command that trains ends: failures as messages and exit codes."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from groupnorm.errors import GroupNormError
from groupnorm.lab.sweeps.configuration import ConfigurationError


@contextmanager
def outcome() -> Iterator[None]:
    """Exit code 2 for a wrong configuration or an unusable folder, 130 when interrupted, 143 when terminated."""
    errors = Console(stderr=True, emoji=False)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves the workers and the terminal in order
    try:
        yield
    except ConfigurationError as error:
        errors.print("[bold red]Nothing was trained; the configuration has these problems:")
        for problem in error.problems:
            errors.print(f"  • {problem}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except GroupNormError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("\nInterrupted. Everything so far is recorded; the same command goes on from here.")
        raise typer.Exit(130) from None
