"""Exceptions of the package. Each message carries the value, what was expected and a remedy.

All derive from :class:`GroupNormError`, and from ``ValueError``, ``TypeError`` (wrong dtype) or ``RuntimeError`` (a
model in the wrong state), so that they are caught without importing this package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class GroupNormError(Exception):
    """Base of every exception that this package raises on purpose."""


class ArgumentError(GroupNormError, ValueError):
    """An argument has a value that cannot be right, whatever the input."""


class DivisibilityError(ArgumentError):
    """An axis does not divide into equal blocks. Remedy: one of the divisors in the message.

    Attributes:
        length: of the axis.
        parts: number of blocks asked for.
        axis: what the axis is called.
        what: what the number of blocks is called.
    """

    def __init__(self, length: int, parts: int, *, axis: str = "num_channels", what: str = "num_groups") -> None:
        self.length, self.parts, self.axis, self.what = length, parts, axis, what
        super().__init__(
            f"{axis}={length} cannot be divided by {what}={parts}; expected a divisor of {length}: "
            f"use {what} from {divisors(length)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send exceptions home by pickle
        return _restore, (type(self), self.args), vars(self)


class ShapeError(GroupNormError, ValueError):
    """The input does not have the rank or the number of channels that the layer was made for."""


class DtypeError(GroupNormError, TypeError):
    """The input's dtype has no mean and variance (integer, boolean). Remedy: convert it to a float."""


class DeviceError(GroupNormError, RuntimeError):
    """A tensor is on another device than the input. Remedy: move it with ``.to(input.device)``."""


class SingleElementError(GroupNormError, ValueError):
    """Every set of elements that shares a mean and a variance has one element.

    The output would be the bias, whatever the input. Remedy: fewer groups, or a larger feature map.
    """


class WiringError(GroupNormError, RuntimeError):
    """A norm needs the layer before it and does not have it. Remedy: ``groupnorm.wire_(model, example)``."""


class ConversionError(GroupNormError, RuntimeError):
    """Norms of a model cannot be exchanged. The message names each, with a remedy."""


class RecomputationError(GroupNormError, RuntimeError):
    """A norm that remembers past batches is run again within a backward pass (gradient checkpointing)."""


class BackendError(GroupNormError, RuntimeError):
    """A backend was named that cannot run the call. Remedy: ``backend="auto"``, or what the message says.

    Attributes:
        name: of the backend.
        reason: why it cannot.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(
            f"backend={name!r} cannot run this call: {reason}; expected a call that it can run, for a backend that was "
            f"named is never exchanged: use backend='auto' to let groupnorm choose"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args), vars(self)


class UnallocatedError(GroupNormError, RuntimeError):
    """A tensor has elements but no memory: its storage was freed, or is not gathered yet (FSDP).

    Remedy: call the norm while the tensor has its values.
    """


class OutOfMemoryError(GroupNormError, RuntimeError):
    """There is not enough memory for a result or for what a kernel needs besides it. Remedy: a smaller batch."""


class UnknownNameError(ArgumentError):
    """A name is not known. The message lists the known ones and the nearest match, also among other names for them.

    Attributes:
        kind: of what the name should be.
        name: as it was given.
        known: the names that there are.
        nearest: the known name that is nearest; None where none is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> None:
        names = list(known)
        by_lower = {known.lower(): known for known in reversed(names)}
        meant = by_lower | dict(aliases or {})
        near = get_close_matches(name.lower(), meant, n=1) or get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
        self.kind, self.name, self.known = kind, name, tuple(names)
        self.nearest = meant[near[0]] if near else None
        hint = f"; did you mean {self.nearest!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}; expected one of: {', '.join(names)}{hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args), vars(self)


def _restore(cls: type[Exception], args: tuple[Any, ...]) -> Exception:
    """Rebuild an exception from its finished message, past the constructor that composes it."""
    error = cls.__new__(cls, *args)
    error.args = args
    return error


def divisors(n: int) -> list[int]:
    """All positive divisors of ``n`` in rising order."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return low + [n // d for d in reversed(low) if d * d != n]
