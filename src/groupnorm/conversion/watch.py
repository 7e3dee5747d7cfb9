"""Sees what the norms of a network give, and the sums that this goes into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from groupnorm.conversion.probe import first_tensor
from groupnorm.nn.wiring import Version, is_changed, version_of

_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_ADD_IN_PLACE = {Tensor.add_, Tensor.__iadd__}


@dataclass
class Call:
    """One call of a norm: its path, which call of it, what it got and what it gave."""

    path: str
    number: int
    norm: nn.Module
    x: Tensor
    y: Tensor
    version: Version = 0  # of y when it was given

    @property
    def key(self) -> tuple[str, int]:
        """The same for the same call in another network."""
        return self.path, self.number


class Watch(TorchFunctionMode):
    """Around a forward pass: a subclass is told of each call of a norm, and may replace what comes of it.

    Args:
        norms: by path.
    """

    def __init__(self, norms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.norms = norms
        self._calls: list[Call] = []

    def after(self, call: Call) -> Tensor:
        """A norm gave ``call.y``; what is returned goes on."""
        raise NotImplementedError

    def sum(self, call: Call, other: Tensor) -> Tensor | None:
        """``call.y`` is about to be added to ``other``; what is returned goes on. None: no sum to look at."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._calls.clear()
        self._hooks = [
            norm.register_forward_hook(
                lambda norm, inputs, options, y, path=path: self._after(path, norm, first_tensor(inputs, options), y),
                with_kwargs=True,
            )
            for path, norm in self.norms.items()
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _after(self, path: str, norm: nn.Module, x: Tensor | None, y: Tensor) -> Tensor:
        assert x is not None
        call = Call(path, sum(call.path == path for call in self._calls), norm, x, y)
        call.y = self.after(call)
        call.version = version_of(call.y)
        self._calls.append(call)
        return call.y

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (function in _ADD or function in _ADD_IN_PLACE) and len(args) == 2 and not kwargs:
            for call in reversed(self._calls):  # of two branches, the one that was computed last
                for mine, other in (args, args[::-1]):
                    same = mine is call.y and not is_changed(mine, call.version)  # by an activation in place
                    if same and isinstance(other, Tensor) and other.shape == mine.shape:
                        total = self.sum(call, other)
                        if total is not None:
                            return args[0].copy_(total) if function in _ADD_IN_PLACE else total
        return function(*args, **(kwargs or {}))
