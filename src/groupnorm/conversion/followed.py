"""A norm whose forward ends with children of its own, as the norm-and-activation layers of timm do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Followed:
    """Marks the classes that :func:`follow_` makes."""

    after: tuple[str, ...]


def follow_(norm: nn.Module, children: Sequence[tuple[str, nn.Module]]) -> nn.Module:
    """Let ``norm`` apply these children to its output, in this order; its own names and parameters stay.

    A child whose name means something else to ``norm`` gets an underscore after it. The class of ``norm`` becomes a
    subclass of its own, so that ``isinstance`` holds; it can be copied and pickled.
    """
    if children:
        named = {f"{name}_" if hasattr(norm, name) else name: child for name, child in children}
        norm.__class__ = _followed(type(norm))
        norm.after = tuple(named)  # type: ignore[assignment]
        for name, child in named.items():
            norm.add_module(name, child)
    return norm


def after_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the children that :func:`follow_` let ``module`` apply."""
    return module.after if isinstance(module, Followed) else ()


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def _followed(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``kind``, always the same one."""
    if kind not in _MADE:
        _MADE[kind] = _subclass(kind)
    return _MADE[kind]


def _subclass(kind: Any) -> type[nn.Module]:
    class WithActivation(kind, Followed):  # type: ignore[misc]
        def forward(self, *args: Any, **options: Any) -> Tensor:
            y: Tensor = super().forward(*args, **options)
            for name in self.after:
                y = getattr(self, name)(y)
            return y

        def __reduce_ex__(self, protocol: Any) -> Any:  # a class made in a function cannot be found by its name
            return _restore, (kind,), self.__dict__

    WithActivation.__name__ = WithActivation.__qualname__ = f"{kind.__name__}WithActivation"
    WithActivation.__doc__ = f"{kind.__name__}, and then the children named in ``after``."
    return WithActivation


def _restore(kind: type[nn.Module]) -> nn.Module:
    made = _followed(kind)
    norm: nn.Module = made.__new__(made)
    return norm
