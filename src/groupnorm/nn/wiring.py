"""Norms that need the convolution before them: "ws+gn" standardises its weight, CBN differentiates by it.

A factory is called with a number of channels and cannot see that convolution. Its layers say what they need, refuse to
run without it, and :func:`wire_` connects them when the model is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from groupnorm.errors import WiringError
from groupnorm.nn.weight_standardization import check_standardizable, is_standardized, standardize_weight_

__all__ = ["NeedsConvolution", "evaluating", "layers_before", "mark_standardized", "wire_"]


@runtime_checkable
class NeedsConvolution(Protocol):
    """A norm that computes with the weight of the layer before it."""

    def attach(self, convolution: nn.Module) -> None:
        """Take note of the layer whose output is this norm's input.

        Raises:
            ArgumentError: the norm cannot compute with its weight.
        """


def mark_standardized(norm: nn.Module) -> nn.Module:
    """Make ``norm`` refuse to run until :func:`wire_` has standardised the weight of the layer before it."""
    norm.register_forward_pre_hook(_refuse)
    return norm


def wire_(model: nn.Module, *example: Any, **options: Any) -> list[tuple[str, str]]:
    """Connect each norm that needs it with the convolution or linear layer before it, in place.

    One forward pass in evaluation mode finds the pairs: a norm belongs to the layer whose output tensor it receives.
    Modes and running statistics stay as they are, and nothing random is drawn unless the model draws in evaluation.
    Norms that need nothing are left alone, so this can be called on any model, and twice. A model that cannot be wired
    is left as it was.

    Args:
        model: the finished network.
        *example: arguments of its forward, such as two images.
        **options: keyword arguments of its forward.

    Returns:
        ``(path of the layer, path of the norm)`` of each pair, in the order of the forward pass.

    Raises:
        WiringError: a norm in need is not reached, receives something else than the output of a convolution or linear
            layer, or, where it needs the only one, the outputs of several.
        ArgumentError: the weight of the layer before a norm cannot be standardised.
        SingleElementError: it has one weight for each output channel.

    Example::

        >>> model = torchvision.models.resnet18(norm_layer=groupnorm.norm_layer("ws+gn"))
        >>> pairs = groupnorm.wire_(model, torch.randn(2, 3, 64, 64))
    """
    standardized = [norm for norm in model.modules() if _marked(norm)]
    attached = [norm for norm in model.modules() if isinstance(norm, NeedsConvolution)]
    if not standardized and not attached:
        return []
    for norm in standardized:
        _unmark(norm)
    try:
        before = layers_before(model, dict.fromkeys([*standardized, *attached]), lambda: model(*example, **options))
        names = {module: name for name, module in model.named_modules()}
        pairs = _pairs(before, attached, names)
        layers = [layer for layer, norm in pairs if norm in standardized and not is_standardized(layer)]
        for layer in layers:
            check_standardizable(layer, names[layer])
        for layer, norm in pairs:
            if isinstance(norm, NeedsConvolution):
                norm.attach(layer)
    except BaseException:
        for norm in standardized:
            mark_standardized(norm)
        raise
    for layer in dict.fromkeys(layers):
        standardize_weight_(layer)
    return [(names[layer], names[norm]) for layer, norm in pairs]


def layers_before(
    model: nn.Module, norms: Iterable[nn.Module], run: Callable[[], object]
) -> dict[nn.Module, list[nn.Module | None]]:
    """The convolution or linear layer whose output each norm receives, call by call; None where it is something else.

    In the order of the forward pass; norms that are not reached come last.
    """
    made: dict[int, tuple[nn.Module, Tensor, Version]] = {}  # the tensors are held, so that no id is used again
    before: dict[nn.Module, list[nn.Module | None]] = {}

    def after_layer(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        made[id(output)] = (layer, output, version_of(output))

    def before_norm(norm: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        received = next(iter((*inputs, *options.values())), None)
        layer, output, version = made.get(id(received), (None, None, 0))
        changed = output is not None and is_changed(output, version)  # by an activation in place, say
        before.setdefault(norm, []).append(None if changed else layer)

    hooks = [m.register_forward_hook(after_layer) for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    hooks += [norm.register_forward_pre_hook(before_norm, with_kwargs=True) for norm in norms]
    try:
        with torch.no_grad(), evaluating(model):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return before | {norm: [] for norm in norms if norm not in before}


Version = int | Tensor
"""What a tensor was: the count of its changes in place, or its values in inference mode, where nothing counts."""


def version_of(tensor: Tensor) -> Version:
    """What a tensor is now."""
    return tensor.clone() if tensor.is_inference() else tensor._version


def is_changed(tensor: Tensor, version: Version) -> bool:
    """Whether a tensor was changed in place since it was of a version."""
    return not torch.equal(tensor, version) if isinstance(version, Tensor) else tensor._version != version


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards each module in its own mode.

    The flags are set, and no ``eval()`` or ``train()`` is called, which some modules take for a request to work on
    their weights.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _pairs(
    before: dict[nn.Module, list[nn.Module | None]], attached: Sequence[nn.Module], names: dict[nn.Module, str]
) -> list[tuple[nn.Module, nn.Module]]:
    """Each layer and the norm after it.

    Raises:
        WiringError: a norm lacks its layer, or has too many.
    """
    unreached = [names[norm] for norm, layers in before.items() if not layers]
    if unreached:
        raise WiringError(
            f"the norms {unreached} are not reached by this forward pass in evaluation mode; expected each to run: "
            f"pass an example that reaches them, or use a norm there that needs no layer before it, such as 'gn'"
        )
    lone = [names[norm] for norm, layers in before.items() if None in layers]
    if lone:
        raise WiringError(
            f"the norms {lone} do not receive the output of a convolution or linear layer; expected one right "
            f"before each: use a norm there that needs none, such as 'gn'"
        )
    pairs = [(layer, norm) for norm, layers in before.items() for layer in dict.fromkeys(layers) if layer is not None]
    several = [names[norm] for norm in attached if sum(norm is other for _, other in pairs) > 1]
    if several:
        raise WiringError(
            f"the norms {several} receive the outputs of several layers; expected one layer before each: use a norm "
            f"of its own after each layer"
        )
    return pairs


def _refuse(norm: nn.Module, inputs: Any) -> None:
    raise WiringError(
        f"{type(norm).__name__} was made by a factory with weight standardisation, and the weights before it are not "
        f"standardised yet; expected a wired model: call groupnorm.wire_(model, example_input) once it is built"
    )


def _marked(norm: nn.Module) -> bool:
    return _refuse in norm._forward_pre_hooks.values()


def _unmark(norm: nn.Module) -> None:
    for key in [key for key, hook in norm._forward_pre_hooks.items() if hook is _refuse]:
        del norm._forward_pre_hooks[key]
