"""Which norms of a network came from the factory that its own factory was given.

A network whose factory ignores ``norm_layer`` trains another norm than its row of the table says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_MARK = "made_by_norm_layer"
_SHOWN = 5  # paths of a message
_TORCHS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Marking:
    """Makes what the factory makes, each with a mark that a copy of the module keeps."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        self.make = make

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        norm = self.make(*args, **kwargs)
        setattr(norm, _MARK, True)
        return norm

    @property
    def __name__(self) -> str:
        """What timm asks a factory for; see :func:`groupnorm.norm_layer`."""
        return str(self.make.__name__)


def marking(factory: Callable[..., nn.Module]) -> partial[nn.Module]:
    """What :func:`groupnorm.norm_layer` returned, a partial still, with norms that are marked."""
    assert isinstance(factory, partial)
    return partial(_Marking(factory.func), *factory.args, **factory.keywords)


def is_marked(module: nn.Module) -> bool:
    """Whether the module came from a marking factory, or is a copy of one that did."""
    return getattr(module, _MARK, False) is True


def ignored(network: nn.Module, norm: str) -> str:
    """How a network ignores the norm that it was to be built with, in words; "" when it does not.

    A norm of its own is allowed: layer norm in a head, say. A batch norm is not, unless batch norm was asked for, since
    what it does depends on the batch. Without a norm at all a network is what "none" asks for.

    Args:
        network: as :func:`groupnorm.lab.models.build` returns it.
        norm: the spec that it was built with.
    """
    own = {path: module for path, module in _outside(network) if isinstance(module, _BatchNorm)}
    asked = {path for path, module in own.items() if norm == "bn" and isinstance(module, _TORCHS)}
    made = asked or any(map(is_marked, network.modules()))
    own = {path: module for path, module in own.items() if path not in asked}
    parts = [] if made or (norm == "none" and not own) else ["has no norm that norm_layer made"]
    if own:
        kinds = Counter(type(module).__name__ for module in own.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        more = ", ..." if len(own) > _SHOWN else ""
        parts.append(f"still has {counts} of its own ({', '.join(list(own)[:_SHOWN])}{more})")
    if not parts:
        return ""
    return f"{' and '.join(parts)}; expected factory(norm_layer) to call norm_layer(num_channels) for every norm"


def _outside(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Path and module of all modules that are not within a marked one."""
    if is_marked(module):
        return
    yield path, module
    for name, child in module.named_children():
        yield from _outside(child, f"{path}.{name}" if path else name)
