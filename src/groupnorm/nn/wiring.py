"""Norms that need the convolution before them: "ws+gn" standardises its weight, CBN differentiates by it.

A factory is called with a number of channels and cannot see that convolution. Its layers say what they need, refuse to
run without it, and :func:`wire_` connects them when the model is complete.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from groupnorm.errors import WiringError
from groupnorm.nn.weight_standardization import standardize_weight_

__all__ = ["NeedsConvolution", "mark_standardized", "wire_"]


@runtime_checkable
class NeedsConvolution(Protocol):
    """A norm that computes with the weight of the layer before it."""

    def attach(self, convolution: nn.Module) -> None:
        """Take note of the layer whose output is this norm's input."""


def mark_standardized(norm: nn.Module) -> nn.Module:
    """Make ``norm`` refuse to run until :func:`wire_` has standardised the weight of the layer before it."""
    norm.register_forward_pre_hook(_refuse)
    return norm


def wire_(model: nn.Module, *example: Any) -> list[tuple[str, str]]:
    """Connect each norm that needs it with the convolution or linear layer before it, in place.

    One forward pass in evaluation mode finds the pairs: a norm belongs to the layer whose output tensor it receives.
    Nothing random is drawn, and modes and running statistics stay as they are. Norms that need nothing are left alone,
    so this can be called on any model, and twice.

    Args:
        model: the finished network.
        *example: arguments of its forward, such as two images.

    Returns:
        ``(path of the layer, path of the norm)`` of each new pair.

    Raises:
        WiringError: a norm in need receives something else than the output of a convolution or linear layer.

    Example::

        >>> model = torchvision.models.resnet18(norm_layer=groupnorm.norm_layer("ws+gn"))
        >>> pairs = groupnorm.wire_(model, torch.randn(2, 3, 64, 64))
    """
    standardized = [norm for norm in model.modules() if _marked(norm)]
    attached = [norm for norm in model.modules() if isinstance(norm, NeedsConvolution)]
    needy = {id(norm) for norm in (*standardized, *attached)}
    if not needy:
        return []
    names = {module: name for name, module in model.named_modules()}
    for norm in standardized:
        _unmark(norm)
    before: dict[nn.Module, nn.Module | None] = {}
    try:
        before = _layers_before(model, [m for m in model.modules() if id(m) in needy], example)
        lone = [names[norm] for norm, layer in before.items() if layer is None]
        if lone:
            raise WiringError(
                f"the norms {lone} do not receive the output of a convolution or linear layer; expected one right "
                f"before each: use a norm there that needs none, such as 'gn'"
            )
    except BaseException:
        for norm in standardized:
            mark_standardized(norm)
        raise
    for layer in {id(before[norm]): before[norm] for norm in standardized}.values():
        assert layer is not None
        standardize_weight_(layer)
    for norm in attached:
        layer = before[norm]
        assert layer is not None
        norm.attach(layer)
    return [(names[layer], names[norm]) for norm, layer in before.items() if layer is not None]


def _layers_before(
    model: nn.Module, norms: list[nn.Module], example: tuple[Any, ...]
) -> dict[nn.Module, nn.Module | None]:
    """The convolution or linear layer whose output each norm receives; None where it is something else."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are held, so that no id is used again
    before: dict[nn.Module, nn.Module | None] = dict.fromkeys(norms)

    def after_layer(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        made[id(output)] = (layer, output)

    def before_norm(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        before[norm] = made[id(inputs[0])][0] if id(inputs[0]) in made else None

    modes = {module: module.training for module in model.modules()}
    hooks = [m.register_forward_hook(after_layer) for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    hooks += [norm.register_forward_pre_hook(before_norm) for norm in norms]
    try:
        model.eval()
        with torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return before


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
