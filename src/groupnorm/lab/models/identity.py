"""What a network of the user's own is known by, so that the results of another one are not taken for its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from groupnorm.lab import models
from groupnorm.lab.common.rng import get_state, seed_all, set_state
from groupnorm.lab.models.marking import is_marked
from groupnorm.nn.own import is_own

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.layout, torch.memory_format)
_CPU = torch.device("cpu")


def digest(name: str, norm: str, example: Tensor, num_classes: int) -> str | None:
    """16 hexadecimal digits that change with the network that a name stands for.

    None for one of this package with a norm of this package.

    They cover its modules as they print, with the numbers and texts among their attributes; every parameter and buffer
    with its value from seed 0; and the modules and functions of torch that its forward calls in evaluation mode, with
    their numbers. What the code of a forward does in training alone is not covered.

    Args:
        name: as :func:`groupnorm.lab.models.find` takes it.
        norm: the spec that it is built with.
        example: a few images ``[N, C, H, W]`` of the data.
        num_classes: number of logits.
    """
    own_norm = is_own(norm)
    if not models.is_own(name) and not own_norm:
        return None
    before = get_state(_CPU)
    try:
        seed_all(0)
        network = models.build(name, norm, example, num_classes).eval()
        sha = hashlib.sha256("\n".join(_structure(network, opaque=not own_norm)).encode("utf-8", "backslashreplace"))
        for path, tensor in (*network.named_parameters(), *network.named_buffers()):
            sha.update(f"{path} {tensor.requires_grad} {_description(tensor)};".encode())
            sha.update(_content(tensor))
        calls = _Calls(network, opaque=not own_norm)
        with torch.no_grad(), calls:
            network(example)
    finally:
        set_state(before, _CPU)
    sha.update("\n".join(calls.found).encode("utf-8", "backslashreplace"))
    return sha.hexdigest()[:16]


def _structure(module: nn.Module, path: str = "", *, opaque: bool) -> Iterator[str]:
    """A line for each module. A norm of the catalog is known by its spec, so that its print does not count."""
    if opaque and is_marked(module):
        yield f"{path}: norm"
        return
    told = module.extra_repr() if module._modules else repr(module)
    kept = {name: value for name, value in vars(module).items() if name[0] != "_" and isinstance(value, _PLAIN)}
    yield _without_addresses(f"{path}: {type(module).__qualname__} {told} {kept}")
    for name, child in module.named_children():
        yield from _structure(child, f"{path}.{name}", opaque=opaque)


class _Calls(TorchFunctionMode):
    """Takes note of what a network calls: modules that their print tells all of, and functions of torch elsewhere.

    Attributes:
        found: a line for each call.
    """

    def __init__(self, network: nn.Module, *, opaque: bool) -> None:
        super().__init__()
        self.found: list[str] = []
        self._within = 0
        for path, module in network.named_modules():
            known = type(module).__module__.partition(".")[0] in ("torch", "groupnorm")
            if (opaque and is_marked(module)) or (known and not module._modules):
                module.register_forward_pre_hook(partial(self._enter, path))
                module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, path: str, module: nn.Module, args: Any) -> None:
        if not self._within:
            self.found.append(f"{path}{_description(args)}")
        self._within += 1

    def _leave(self, *_: Any) -> None:
        self._within -= 1

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", type(function).__name__)
        if not self._within and name != "__get__":
            self.found.append(_without_addresses(f"{name}{_description((args, kwargs or {}))}"))
        return function(*args, **(kwargs or {}))


def _description(value: Any) -> str:
    """An argument by what does not change from process to process: numbers, names and shapes."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {'unknown' if is_lazy(value) else tuple(value.shape)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_description(part)}' for key, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_description, value))})"
    return repr(value) if isinstance(value, _PLAIN) else type(value).__name__


def _content(tensor: Tensor) -> bytes:
    if is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided:
        return b""
    content: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return content


def _without_addresses(text: str) -> str:
    return _ADDRESS.sub("", text)
