"""What the norms of a model see in one forward pass: ranks, positions, and the convolution before them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from groupnorm.nn.wiring import layers_before


class Seen:
    """What one norm saw.

    Attributes:
        rank: of its input; None: not reached.
        positions: of its input, the fewest of all calls; None: not reached.
        before: the convolution or linear layer whose output it received in every call; None where there is no such one.
    """

    def __init__(self) -> None:
        self.rank: int | None = None
        self.positions: int | None = None
        self.before: nn.Module | None = None


def probe(model: nn.Module, norms: Iterable[nn.Module], sample_input: Any) -> dict[nn.Module, Seen]:
    """Run ``model`` once in evaluation mode and tell what each norm saw. The model stays as it was.

    Args:
        model: the network.
        norms: which modules to look at.
        sample_input: its input: a tensor, a tuple of positional arguments or a mapping of keyword arguments; None: do
            not run it.
    """
    seen = {norm: Seen() for norm in norms}
    if sample_input is None or not seen:
        return seen

    def look(norm: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = next((value for value in (*inputs, *options.values()) if isinstance(value, Tensor)), None)
        if x is not None:
            positions = math.prod(x.shape[2:])
            before = seen[norm].positions
            seen[norm].rank = x.dim()
            seen[norm].positions = positions if before is None else min(before, positions)

    hooks = [norm.register_forward_pre_hook(look, with_kwargs=True) for norm in seen]
    try:
        layers = layers_before(model, seen, lambda: run(model, sample_input))
    finally:
        for hook in hooks:
            hook.remove()
    for norm, found in layers.items():
        same = found and all(layer is found[0] for layer in found)
        seen[norm].before = found[0] if same else None
    return seen


def run(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` with a tensor, a tuple of positional arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def inputs_of(batch: Any, model: nn.Module) -> Any:
    """The inputs of a batch, on the device of the model."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    device = next(model.parameters()).device
    return x.to(device) if isinstance(x, Tensor) else x


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards each module in its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
