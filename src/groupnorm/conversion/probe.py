"""A model run on inputs, and what its norms see there: ranks, positions, and the convolution before them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from groupnorm.conversion.rules import Facts, facts
from groupnorm.errors import ArgumentError, ConversionError, GroupNormError
from groupnorm.nn.wiring import evaluating as evaluating
from groupnorm.nn.wiring import layers_before


class Seen:
    """What one norm saw.

    Attributes:
        shapes: of its inputs, call by call.
        before: the convolution or linear layer whose output it received in every call; None where there is no such one.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.before: nn.Module | None = None

    @property
    def rank(self) -> int | None:
        """Of its input; None: not reached."""
        return len(self.shapes[-1]) if self.shapes else None

    @property
    def positions(self) -> int | None:
        """Of its input, the fewest of all calls; None: not reached."""
        return min((math.prod(shape[2:]) for shape in self.shapes), default=None)


def probe(model: nn.Module, norms: Iterable[nn.Module], sample_input: Any) -> dict[nn.Module, Seen]:
    """Run ``model`` once in evaluation mode and tell what each norm saw. The model stays as it was.

    Args:
        model: the network.
        norms: which modules to look at.
        sample_input: its input: a tensor, a tuple or list of positional arguments or a mapping of keyword arguments;
            None: do not run it.
    """
    seen = {norm: Seen() for norm in norms}
    if sample_input is None or not seen:
        return seen

    def look(norm: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = first_tensor(inputs, options)
        if x is not None:
            seen[norm].shapes.append(tuple(x.shape))

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
    """Call ``model`` with a tensor, a tuple or list of positional arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def run_batch(model: nn.Module, batch: Any, number: int, name: str = "the model") -> None:
    """Run ``model`` on the inputs of a batch, the ``number``-th; an error of the model says on which."""
    inputs = inputs_of(batch, model)
    try:
        run(model, inputs)
    except GroupNormError:
        raise
    except Exception as error:  # a model may raise anything
        raise ConversionError(
            f"running {name} on batch {number} failed: {type(error).__name__}: {error}; expected inputs that it takes "
            f"in evaluation mode: a tuple or list is its positional arguments, and within another it is one argument, "
            f"as ([image], targets) for a detector"
        ) from error


def first_tensor(inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor | None:
    """What a layer was called with, by position or by keyword; None: no tensor."""
    return next((value for value in (*inputs, *options.values()) if isinstance(value, Tensor)), None)


def known_facts(module: nn.Module) -> Facts | None:
    """What is known of a norm; None where ``module`` is none, or one that no rule knows."""
    try:
        return facts(module)
    except ArgumentError:
        return None


def check_batches(data: Iterable[Any]) -> None:
    """Raise where ``data`` is one batch, whose images or names would be taken for batches."""
    if isinstance(data, (Tensor, Mapping)):
        shape = f" of shape {tuple(data.shape)}" if isinstance(data, Tensor) else ""
        raise ArgumentError(f"data is one {type(data).__name__}{shape}; expected batches, such as [images]")


def inputs_of(batch: Any, model: nn.Module) -> Any:
    """The inputs of a batch as :func:`run` takes them, with their tensors on the device of the model.

    A batch is its inputs, or a tuple or list that begins with them, as a data loader gives; labels and whatever else
    follows are left out. The inputs are one argument of the model, a tuple or list of positional arguments, or a
    mapping of keyword arguments, which is passed whole. So ``[[a, b], labels]`` calls ``model(a, b)``, and
    ``[a, labels]`` calls ``model(a)``. Where the one argument is a list itself, it is within another:
    ``([[a, b]], labels)`` calls ``model([a, b])``.
    """
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise ArgumentError(f"a batch is {batch!r}; expected inputs, or a tuple that begins with them")
        batch = batch[0]
    device = device_of(model)
    return batch if device is None else _moved(batch, device)


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's first parameter or buffer; None: it has none."""
    tensor = next((tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors), None)
    return None if tensor is None else tensor.device


def _moved(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # a named tuple counts them out
    return value
