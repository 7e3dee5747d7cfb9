"""A model as it is, to be put back when loading into it fails half-way; and a model on meta, given memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_CONTAINERS = (dict, OrderedDict, list, set, deque)


class Snapshot:
    """The attributes of every module of a model, with the items of containers, and the values of all its tensors.

    Args:
        model: the network. Its parameters and buffers are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [
            (module, name, value, list(_items(value)) if type(value) in _CONTAINERS else None)
            for module in model.modules()
            for name, value in module.__dict__.items()
        ]
        self._names = {module: set(module.__dict__) for module in model.modules()}
        tensors = {id(tensor): tensor for _, _, tensor in tensors_of(model)}
        self._values = [(tensor, type(tensor), _value(tensor)) for tensor in tensors.values()]

    def restore(self) -> None:
        """Put everything back."""
        for module, names in self._names.items():
            for name in set(module.__dict__) - names:
                del module.__dict__[name]
        for module, name, value, items in self._attributes:
            module.__dict__[name] = value
            if items is not None:
                value.clear()
                (value.extend if isinstance(value, (list, deque)) else value.update)(items)
        with torch.inference_mode():  # where tensors that were made in inference mode can be written, and others too
            for tensor, kind, copy in self._values:
                _restore(tensor, kind, copy)


def tensors_of(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter and buffer of a model, in each of its places: the module and its name there."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            yield from ((module, name, tensor) for name, tensor in tensors.items() if tensor is not None)


def allocate_(model: nn.Module, device: torch.device) -> None:
    """Give memory to what a state dict of ``model`` has on meta, in place: zeros on ``device``.

    A tensor in several places stays one.
    """
    made: dict[int, Tensor] = {}
    for module, name, tensor in list(tensors_of(model)):
        if not tensor.is_meta or name in module._non_persistent_buffers_set:
            continue
        if id(tensor) not in made:
            zeros = torch.zeros_like(tensor, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(zeros, tensor.requires_grad) if is_parameter else zeros
        setattr(module, name, made[id(tensor)])


def _items(container: Any) -> Any:
    return container.items() if isinstance(container, dict) else container


def _value(tensor: Tensor) -> Tensor | None:
    """A copy; None where there are no values yet."""
    return None if is_lazy(tensor) or tensor.is_meta else tensor.detach().clone()


def _restore(tensor: Tensor, kind: type[Tensor], copy: Tensor | None) -> None:
    if type(tensor) is not kind:  # it was lazy, and loading gave it a shape
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.__class__ = kind
    elif copy is None:
        return
    elif (tensor.shape, tensor.dtype, tensor.device) != (copy.shape, copy.dtype, copy.device):
        tensor.data = copy
    elif tensor.layout is not torch.strided or not torch.equal(tensor, copy):  # an expanded one cannot be written
        tensor.copy_(copy)
