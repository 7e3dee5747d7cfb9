"""From a spec such as "gn:c16" to a factory that makes the layer for a number of channels."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.functional import check_activation
from groupnorm.nn.catalog import CATALOG, default_groups
from groupnorm.nn.group_norm import GroupNorm

_GROUPS = re.compile(r"gn:(c?)([1-9][0-9]*)")
_TORCH_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def norm_layer(spec: str, *, activation: str | None = None) -> Callable[..., nn.Module]:
    """A channels-first factory for a normalisation, usable as ``norm_layer=`` of torchvision and timm.

    Args:
        spec: "bn"; "gn" (32 groups, or the largest divisor of C up to 32), "gn:8" (8 groups), "gn:c16"
            (16 channels a group); "ln" (over C, H, W); "in"; "none".
        activation: None, "relu", "silu" or "gelu". Only for models whose norm layer also is the activation
            (timm's EfficientNet, RegNet, MobileNet, ...), which do not tell a factory which one. Default: None.

    Returns:
        ``factory(num_channels, *, eps=1e-5, device=None, dtype=None)`` that returns the module. It can be pickled.

    Raises:
        UnknownNameError: an unknown spec; lists the known ones and the nearest match.
        DivisibilityError: when the factory is called with channels that do not divide into the groups asked for.
        ArgumentError: a timm model expects an activation from the layer and none was named.

    Example::

        >>> model = torchvision.models.resnet18(norm_layer=norm_layer("gn"))
        >>> model = timm.create_model("efficientnet_b0", norm_layer=norm_layer("gn", activation="silu"))
    """
    check_spec(spec)
    check_activation(activation)
    if activation is None:
        return partial(_NormWithoutActivation(), spec=spec)
    return partial(_build_with_activation, spec=spec, activation=activation)


def check_spec(spec: str) -> None:
    """Raise :class:`UnknownNameError` unless ``spec`` names a normalisation."""
    if not isinstance(spec, str) or (spec not in CATALOG and not _GROUPS.fullmatch(spec)):
        raise UnknownNameError("norm", str(spec), [*CATALOG, "gn:8", "gn:c16"])


class _NormWithoutActivation:
    """Builds the norm alone.

    timm asks a norm for its ``__name__`` to find the layer that is norm and activation in one, and takes a plain
    function for such a layer; a network would then silently lose its activations. This refuses the question.
    """

    def __call__(self, num_channels: int, *, spec: str, **kwargs: Any) -> nn.Module:
        return _plain(num_channels, spec, **kwargs)

    @property
    def __name__(self) -> str:
        raise ArgumentError(
            "this model expects norm_layer to apply the activation too, and the factory names none; expected the "
            "activation of the model: norm_layer(spec, activation='relu'), 'silu' or 'gelu'"
        )


def _build_with_activation(
    num_channels: int,
    *,
    spec: str,
    activation: str,
    apply_act: bool = True,
    inplace: bool = False,
    act_kwargs: dict[str, Any] | None = None,
    drop_layer: type[nn.Module] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build the norm and its activation, as timm's models call for it.

    ``inplace`` and ``act_kwargs`` tune timm's own activation modules and change no value here.
    """
    applied = activation if apply_act else None
    if drop_layer is None and spec not in ("bn", "none"):
        return _plain(num_channels, spec, activation=applied, **kwargs)
    layers: OrderedDict[str, nn.Module] = OrderedDict(norm=_plain(num_channels, spec, **kwargs))
    if drop_layer is not None:
        layers["drop"] = drop_layer()
    if applied is not None:
        layers["act"] = _TORCH_ACTIVATIONS[applied]()
    return layers["norm"] if len(layers) == 1 else nn.Sequential(layers)


def _plain(num_channels: int, spec: str, **kwargs: Any) -> nn.Module:
    if spec == "bn":
        return nn.BatchNorm2d(num_channels, **kwargs)
    if spec == "none":
        return nn.Identity()
    if spec == "ln":
        return GroupNorm(1, num_channels, **kwargs)
    if spec == "in":
        return GroupNorm(num_channels, num_channels, **kwargs)
    if match := _GROUPS.fullmatch(spec):
        by_size, number = match[1] == "c", int(match[2])
        if by_size:
            return GroupNorm(num_channels=num_channels, group_size=number, **kwargs)
        return GroupNorm(number, num_channels, **kwargs)
    return GroupNorm(default_groups(num_channels), num_channels, **kwargs)
