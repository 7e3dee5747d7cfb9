"""From a spec such as "gn:c16" or "ws+bn" to a factory that makes the layer for a number of channels."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from groupnorm.errors import ArgumentError, DivisibilityError, UnknownNameError
from groupnorm.nn.activation import ACTIVATION_MODULES
from groupnorm.nn.base import check_count
from groupnorm.nn.catalog import CATALOG
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.nn.norm import Norm
from groupnorm.nn.own import is_own, own_row, spec_of
from groupnorm.nn.wiring import mark_standardized
from groupnorm.ops.backends import check_name
from groupnorm.ops.checks import check_activation

_SPEC = re.compile(r"(ws\+)?([a-z0-9-]+)(?::(c?)([1-9][0-9]*))?")


def norm_layer(
    spec: str | Callable[..., nn.Module], *, activation: str | None = None, backend: str | None = None
) -> Callable[..., nn.Module]:
    """A channels-first factory for a normalisation, usable as ``norm_layer=`` of torchvision and timm.

    Args:
        spec: a spec of :func:`groupnorm.catalog`: "bn", "gn" (32 groups, or the largest divisor of C up to 32), "ln"
            (over C, H, W), "in", "brn", ... A number follows where the row has one: "gn:8" (8 groups), "gn:c16" (16
            channels a group), "ghost:4" (4 samples a chunk). "ws+gn" standardises the weights of the convolutions
            before the norms; call :func:`groupnorm.wire_` on the finished model. A norm of your own is a class, a
            function of channels, or its path "package.module:name"; see :func:`groupnorm.check_norm`.
        activation: None, "relu", "silu", "gelu" or "gelu_tanh". Only for models whose norm layer also is the activation
            (timm's EfficientNet, RegNet, MobileNet, ...), which do not tell a factory which one. A norm that contains
            its own activation (FRN, EvoNorm) keeps that instead. Default: None.
        backend: of :class:`groupnorm.GroupNorm`, where that is the layer: "native" exports a model to where this
            package is not installed. Other norms compute with torch's operations in any case. Default: "auto".

    Returns:
        ``factory(num_channels, *, eps=..., device=None, dtype=None, apply_act=True)`` that returns the module. It can
        be pickled. ``apply_act=False`` leaves out the activation, that of a norm that contains one too.

    Raises:
        UnknownNameError: an unknown spec or backend; lists the known ones and the nearest match.
        DivisibilityError: when the factory is called with channels that do not divide into the groups asked for.
        ArgumentError: when the factory is called with channels that are no integer of at least 1; or a timm model
            expects an activation from the layer and none was named.

    Example::

        >>> model = torchvision.models.resnet18(norm_layer=norm_layer("gn"))
        >>> model = timm.create_model("efficientnet_b0", norm_layer=norm_layer("gn", activation="silu"))
    """
    spec = spec_of(spec)
    check_spec(spec)
    check_activation(activation)
    options: dict[str, Any] = {}
    if backend is not None:
        check_name(backend)
        options["backend"] = backend
    if activation is None:
        return partial(_NormWithoutActivation(), spec=spec, **options)
    return partial(_build_with_activation, spec=spec, activation=activation, **options)


@dataclass(frozen=True)
class Spec:
    """A spec, taken apart: ``ws+gn:c16`` is the row of gn, 16, by size, with standardised weights."""

    row: Norm
    number: int | None = None
    by_size: bool = False
    standardized: bool = False


def parse(spec: str) -> Spec:
    """Take a spec apart.

    Raises:
        UnknownNameError: it names no normalisation that can replace another, or carries a number it does not take.
        ArgumentError: it is the path of a norm of the user's own that cannot be imported.
    """
    if isinstance(spec, str) and is_own(spec) and spec.removeprefix("ws+").partition(":")[0] not in CATALOG:
        return Spec(own_row(spec.removeprefix("ws+")), standardized=spec.startswith("ws+"))
    match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    row = CATALOG.get(match[2]) if match else None
    if match is None or row is None or row.make is None or (match[4] and not row.number):
        known = [row.spec for row in CATALOG.values() if row.make is not None]
        known += ["gn:8", "gn:c16", "ws+gn", "ws+bn", "package.module:name"]
        raise UnknownNameError("norm", str(spec), known, _other_names())
    if match[3] and row.number != "groups":
        raise UnknownNameError("norm", spec, [f"{row.spec}:{match[4]}"])
    return Spec(row, int(match[4]) if match[4] else None, bool(match[3]), bool(match[1]))


def _other_names() -> dict[str, str]:
    """What users call the norms elsewhere: "groupnorm" and "group" are gn."""
    found = {"gn+ws": "ws+gn", "bn+ws": "ws+bn"}
    for row in CATALOG.values():
        if row.make is not None and row.spec != "none":
            name = row.title.lower().replace("normalization", "norm").replace(" ", "")
            found |= {name: row.spec, name.removesuffix("norm"): row.spec, row.title.lower(): row.spec}
    return found


def check_spec(spec: str) -> None:
    """Raise :class:`UnknownNameError` unless ``spec`` names a normalisation."""
    parse(spec)


class _NormWithoutActivation:
    """Builds the norm alone.

    timm asks a norm for its ``__name__`` to find the layer that is norm and activation in one, and takes a plain
    function for such a layer; a network would then silently lose its activations. This refuses the question.
    """

    def __call__(self, num_channels: int, *, spec: str, apply_act: bool = True, **kwargs: Any) -> nn.Module:
        if parse(spec).row.activates:
            kwargs["activation"] = apply_act
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
    row = parse(spec).row
    if row.activates:
        kwargs["activation"] = apply_act
    applied = activation if apply_act and not row.activates else None
    if drop_layer is None and row.layer is GroupNorm:
        return _plain(num_channels, spec, activation=applied, **kwargs)
    layers: OrderedDict[str, nn.Module] = OrderedDict(norm=_plain(num_channels, spec, **kwargs))
    if drop_layer is not None:
        layers["drop"] = drop_layer()
    if applied is not None:
        layers["act"] = ACTIVATION_MODULES[applied]()
    return layers["norm"] if len(layers) == 1 else nn.Sequential(layers)


def _plain(num_channels: int, spec: str, backend: str | None = None, **kwargs: Any) -> nn.Module:
    check_count("num_channels", num_channels)
    parsed = parse(spec)
    number = parsed.number
    if parsed.by_size and number is not None:
        if num_channels % number:
            raise DivisibilityError(num_channels, number, what="group_size")
        number = num_channels // number
    assert parsed.row.make is not None
    norm = parsed.row.make(num_channels, parsed.row.resolve(num_channels, number), **kwargs)
    if backend is not None and isinstance(norm, GroupNorm):
        norm.backend = backend
    return mark_standardized(norm) if parsed.standardized else norm
