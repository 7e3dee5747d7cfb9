"""Norms of the user's own: a class or a function wherever a spec is taken, and a check of what it declares."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from groupnorm.errors import ArgumentError
from groupnorm.import_path import resolve
from groupnorm.nn.norm import Norm
from groupnorm.ops.reference import normalize
from groupnorm.sets import SharedSet

PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.<>]*")
"""``package.module:name``, where no spec of the catalog has this form."""

SETS = "shared_sets"
"""The attribute by which a class or function declares which elements share a mean and a variance."""

_here: dict[str, Callable[..., nn.Module]] = {}
"""Those that were given as objects and that their paths do not lead to: of functions, and of the running script."""

Factory = Callable[..., nn.Module]


def spec_of(norm: str | Factory) -> str:
    """The spec of a norm: itself, or the path of a class or function.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(norm, str):
        return norm
    if not callable(norm):
        raise ArgumentError(f"norm is {norm!r}; expected a spec such as 'gn', or a class or function of channels")
    name = getattr(norm, "__qualname__", type(norm).__qualname__)
    path = f"{getattr(norm, '__module__', '')}:{name}"
    if not _leads_to(path, norm):
        _here[path] = norm
        own_row.cache_clear()
    return path


def _leads_to(path: str, norm: Factory) -> bool:
    """Whether a path can be imported, and is this very object."""
    try:
        return resolve(path, "norm") is norm
    except ArgumentError:
        return False


@functools.lru_cache(maxsize=256)
def own_row(path: str) -> Norm:
    """What the catalog would say of a norm of the user's own.

    Args:
        path: ``package.module:name`` of a class or function that is called with the number of channels, and with those
            of ``eps``, ``affine``, ``bias``, ``device``, ``dtype`` and ``activation`` that it takes. It may declare in
            ``shared_sets`` a :class:`groupnorm.sets.SharedSet`, or several, of the elements that share statistics.

    Raises:
        ArgumentError: it cannot be imported, or declares something else.
    """
    factory = _here.get(path) or resolve(path, "norm")
    declared = getattr(factory, SETS, ())
    sets = (declared,) if isinstance(declared, SharedSet) else declared
    if not isinstance(sets, tuple | list) or not all(isinstance(shared, SharedSet) for shared in sets):
        raise ArgumentError(
            f"norm {path!r} has {SETS}={declared!r}; expected a groupnorm.sets.SharedSet, or a tuple of them"
        )
    return Norm(
        path,
        factory if isinstance(factory, type) else nn.Module,
        path.partition(":")[2],
        "-",
        lambda number: tuple(sets),
        "Your own.",
        partial(_make, factory, path),
        note="" if sets else " that is declared",
        prenormalizes=True,
        in_all=False,
    )


def is_own(spec: str) -> bool:
    """Whether a spec is the path of a norm of the user's own."""
    return PATH.fullmatch(spec.removeprefix("ws+")) is not None and not re.fullmatch(r"(ws\+)?[a-z0-9-]+:c?\d+", spec)


def check_norm(norm: str | Factory, channels: int = 8) -> None:
    """Compare a norm of your own in training mode with the definition in float64, output and gradients.

    Args:
        norm: a class, a function or its path; it declares one set in ``shared_sets``.
        channels: number of channels to make it for. Default: 8.

    Raises:
        ArgumentError: it declares no set or several, or differs from the definition. Says by how much.

    Example::

        >>> class MyNorm(torch.nn.GroupNorm):
        ...     shared_sets = groupnorm.sets.group_set(2)
        ...     def __init__(self, channels, eps=1e-5, affine=True):
        ...         super().__init__(2, channels, eps, affine)
        >>> groupnorm.check_norm(MyNorm)
    """
    row = own_row(spec_of(norm))
    sets = row.sets(1)
    if len(sets) != 1:
        raise ArgumentError(
            f"norm {row.spec!r} declares {len(sets)} sets; expected one: set {SETS} to a groupnorm.sets.SharedSet"
        )
    assert row.make is not None
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, channels, 5, 3), (2, channels, 4, 4)):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.5
        upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
        module = row.make(channels, 0, eps=1e-5, affine=False).double().train()
        outcomes = []
        for function in (module, lambda t: normalize(t, sets[0], eps=1e-5)):
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            outcomes.append((y.detach(), *torch.autograd.grad(y, leaf, upstream)))
        for what, mine, expected in zip(("output", "gradient"), *outcomes, strict=True):
            error = (mine - expected).abs().max().item() if mine.shape == expected.shape else float("inf")
            if not error < 1e-6:
                raise ArgumentError(
                    f"the {what} of norm {row.spec!r} for an input {shape} is {error:.3g} from the definition with "
                    f"{row.axes}; expected at most 1e-06: correct the norm, or what it declares in {SETS}"
                )


def _make(factory: Factory, path: str, channels: int, number: int, **options: Any) -> nn.Module:
    """The module for a number of channels, with the options that the factory takes; the rest is done to the module."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some of C have none
        parameters = {}  # type: ignore[assignment]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {name: value for name, value in options.items() if takes_all or name in parameters}
    norm = factory(channels, **taken)
    if not isinstance(norm, nn.Module):
        raise ArgumentError(
            f"norm {path!r} returned {type(norm).__name__} for {channels} channels; expected a torch.nn.Module"
        )
    place = {name: options[name] for name in ("device", "dtype") if name not in taken and options.get(name) is not None}
    return norm.to(**place) if place else norm
