"""How processes end."""

from __future__ import annotations

import signal


def ending(code: int) -> str:
    """How a process ended, from its exit code, in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
