"""Checkpoints of a model from before a conversion for the model after it, and the other way round."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from groupnorm.conversion.keys import name_of, parent_of, remedy, renamed_keys, some
from groupnorm.conversion.probe import known_facts
from groupnorm.conversion.snapshot import Snapshot, allocate_, tensors_of
from groupnorm.errors import ArgumentError, ConversionError, GroupNormError
from groupnorm.nn.continual_norm import ContinualNorm

_VERSIONS = (_NormBase._version, ContinualNorm._version)
"""Of norms with running statistics."""


@dataclass(frozen=True, repr=False)
class Loaded:
    """Which keys of a checkpoint went where.

    Attributes:
        loaded: keys of the model that got a value of the checkpoint, also where a hook of the model renamed it.
        renamed: key of the checkpoint -> key of the model, where they differ: standardised weights.
        dropped: keys of the checkpoint that only its norms have, such as running statistics, or that a module discards.
        kept: keys of the model that only its norms have, or that a module fills in itself where a checkpoint lacks
            them. They keep their values, or what that module sets them to.
    """

    loaded: tuple[str, ...]
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} keys loaded"]
        for name, keys in (("renamed", list(self.renamed)), ("not used", self.dropped), ("not in it", self.kept)):
            parts += [f"{len(keys)} {name}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"] if keys else []
        return "; ".join(parts)

    def __repr__(self) -> str:
        return str(self)


def load_checkpoint_(model: nn.Module, checkpoint: Mapping[str, Any]) -> Loaded:
    """Load a state dict that was saved before, or after, the norms of ``model`` were converted.

    Only the norms may differ: their running statistics, the parameters that only one kind has, and whether the weights
    before them are standardised. Norms that no rule knows have to be the same. A checkpoint does not tell what its
    parametrizations are: in a model without one, the weight under a parametrization of a convolution or linear layer is
    taken for one that was standardised, and ``renamed`` names it.

    The keys are mapped, and ``model.load_state_dict`` loads them, with the hooks and the loading of each module. Until
    that succeeds, a copy of the parameters and buffers is kept. What is on meta gets memory, on the device of the rest
    of the model, or of the checkpoint; optimizers are made after that.

    Args:
        model: the network; in place.
        checkpoint: a state dict of the same network with other norms.

    Returns:
        Which keys went where.

    Raises:
        ConversionError: other keys differ, or the loading of a module fails; nothing is loaded.
        ArgumentError: a value has another shape, or cannot be copied, or ``checkpoint`` is no state dict; nothing is
            loaded.

    Example::

        >>> converted = groupnorm.convert(torchvision.models.resnet50(), "gn")
        >>> print(groupnorm.load_checkpoint_(converted, torch.load("resnet50-of-batch-norm.pt")))
    """
    own = _keys_for(model, checkpoint)
    modules = dict(model.named_modules(remove_duplicate=False))
    norms = {path for path, module in modules.items() if known_facts(module) is not None}
    renamed = renamed_keys(checkpoint, own, modules)
    mapped = OrderedDict((renamed.get(key, key), value) for key, value in checkpoint.items())
    _fill_ties(mapped, _tensors(model), own)
    mapped._metadata = _metadata(checkpoint, modules, norms)  # type: ignore[attr-defined]
    before = Snapshot(model)
    try:
        empty = _allocate(model, checkpoint)
        missing, unexpected = _load(model, mapped, own)
        _check_keys(own, checkpoint, missing, unexpected, norms)
        found = _account(own, mapped, missing, unexpected, renamed)
        _check_kept(model, found.kept, empty)
    except BaseException as error:
        before.restore()
        if isinstance(error, GroupNormError) or not isinstance(error, Exception):
            raise
        raise _failure(model, mapped, error) from error
    return found


def _fill_ties(state: dict[str, Any], tensors: Mapping[str, Tensor], own: Collection[str]) -> None:
    """Give each key of a tensor of the model the value that another key of it has: safetensors keeps one of them."""
    values = {id(tensor): state[key] for key, tensor in tensors.items() if key in state}
    for key in own:
        if key not in state and id(tensors.get(key)) in values:
            state[key] = values[id(tensors[key])]


def _metadata(
    checkpoint: Mapping[str, Any], modules: Mapping[str, nn.Module], norms: Collection[str]
) -> dict[str, dict[str, Any]]:
    """The versions in the checkpoint; that of a norm without running statistics would mean an old batch norm."""
    found = {path: dict(facts) for path, facts in getattr(checkpoint, "_metadata", {}).items()}
    for path in norms:
        own, version = modules[path]._version, found.get(path, {}).get("version") or 0
        if isinstance(modules[path], _NormBase) and own in _VERSIONS and version not in _VERSIONS:
            found[path] = {**found.get(path, {}), "version": own}
    return found


def _allocate(model: nn.Module, checkpoint: Mapping[str, Any]) -> set[str]:
    """Give memory to what is on meta, and return the paths of the modules that nothing but the checkpoint can fill."""
    on_meta = {module for module, _, tensor in tensors_of(model) if tensor.is_meta}
    if not on_meta:
        return set()
    tensors = [tensor for _, _, tensor in tensors_of(model)] + list(checkpoint.values())
    devices = [tensor.device for tensor in tensors if isinstance(tensor, Tensor) and not tensor.is_meta]
    whole = on_meta - {module for module, _, tensor in tensors_of(model) if not tensor.is_meta}
    allocate_(model, devices[0] if devices else torch.device("cpu"))
    for module in list(on_meta & whole):
        reset = getattr(module, "reset_parameters", None)
        if known_facts(module) is not None and reset is not None:
            reset()
            on_meta.remove(module)
    return {path for path, module in model.named_modules(remove_duplicate=False) if module in on_meta}


def _load(model: nn.Module, state: Mapping[str, Any], own: Collection[str]) -> tuple[set[str], set[str]]:
    """Load a state dict, and return the keys that it lacks, and those that it has too many."""
    result = model.load_state_dict(state, strict=False)
    if result is None:  # an own load_state_dict of the model that returns nothing
        return set(own) - set(state), set(state) - set(own)
    return set(result.missing_keys), set(result.unexpected_keys)


def _failure(model: nn.Module, state: Mapping[str, Any], error: Exception) -> GroupNormError:
    """Why a state dict could not be loaded into a model, which is as it was before."""
    for key, own in _tensors(model).items():
        if key in state and not is_lazy(own) and (wrong := _wrong(key, state[key], own)):
            return ArgumentError(wrong)
    return ConversionError(
        f"loading the checkpoint failed: {type(error).__name__}: {error}; nothing is loaded; expected a state "
        f"dict that model.load_state_dict takes, but for the norms"
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by key, those in several places by each."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _check_keys(
    own: Collection[str],
    checkpoint: Mapping[str, Any],
    missing: Collection[str],
    unexpected: Collection[str],
    norms: Collection[str],
) -> None:
    """Raise where keys differ that are not of norms."""
    unknown = [key for key in checkpoint if key in unexpected and parent_of(key) not in norms]
    every = [*own, *sorted(set(missing) - set(own))]
    lacking = [
        key for key in every if key in missing and (parent_of(key) not in norms or name_of(key) in ("weight", "bias"))
    ]
    if unknown or lacking:
        raise ConversionError(
            f"the checkpoint has {some(unknown)} that the model lacks, and lacks {some(lacking)}; expected "
            f"differences in norms alone: {remedy(own, checkpoint)}"
        )


def _account(
    own: Collection[str], mapped: Mapping[str, Any], missing: set[str], unexpected: set[str], renamed: dict[str, str]
) -> Loaded:
    """Which keys went where.

    Keys that the model lacks and its modules took were renamed by them where other keys got values from nowhere;
    otherwise they were dropped.
    """
    refused = missing | unexpected
    loaded = [key for key in mapped if key in own and key not in refused]
    taken = [key for key in mapped if key not in own and key not in refused]
    given = [key for key in own if key not in mapped and key not in refused]
    by_modules = bool(taken) and bool(given)
    loaded += given if by_modules else []
    done = {*loaded, *(taken if by_modules else [])}
    return Loaded(
        tuple(loaded),
        renamed,
        tuple(key for key in mapped if key not in done),
        tuple(key for key in own if key not in done),
    )


def _check_kept(model: nn.Module, kept: Collection[str], empty: Collection[str]) -> None:
    """Raise where a key keeps a value that there is not: of a lazy module, or of one on meta."""
    tensors = _tensors(model)
    for key in kept:
        if parent_of(key) in empty or (key in tensors and is_lazy(tensors[key])):
            raise ConversionError(
                f"{key} has no value, neither in the model nor in the checkpoint; nothing is loaded; expected a model "
                f"that is not on meta, and whose lazy modules have run once"
            )


_EXTRA = "_extra_state"


def _keys_for(model: nn.Module, checkpoint: Any) -> dict[str, None]:
    """The keys of the model, in their order; raises where a checkpoint is no state dict, or holds one."""
    if not isinstance(checkpoint, Mapping):
        what, cure = f"a {type(checkpoint).__name__}", "pass what state_dict() gave"
        if isinstance(checkpoint, (str, PathLike)):
            what = f"the path {str(checkpoint)!r}"
            cure = "load it with torch.load, or safetensors.torch.load_file"
        elif isinstance(checkpoint, nn.Module):
            cure = "pass its state_dict()"
        raise ArgumentError(f"checkpoint is {what}; expected a state dict: {cure}")
    own = dict.fromkeys(model.state_dict())
    if keys := state_dicts_in(checkpoint, own):
        raise ArgumentError(
            f"the checkpoint has a mapping with tensors under {keys[0]!r}; expected a state dict: pass "
            f"checkpoint[{keys[0]!r}], if that is the one of the model"
        )
    if others := [key for key in checkpoint if not isinstance(key, str)]:
        raise ArgumentError(
            f"the checkpoint has the key {others[0]!r}, a {type(others[0]).__name__}; expected a state dict, whose "
            f"keys are texts: pass what state_dict() gave"
        )
    return own


def state_dicts_in(checkpoint: Mapping[str, Any], own: Collection[str]) -> list[str]:
    """The keys, other than those of the model, under which a checkpoint holds mappings with tensors."""
    mappings = {key: value for key, value in checkpoint.items() if key not in own and isinstance(value, Mapping)}
    return [
        key
        for key, value in mappings.items()
        if not str(key).endswith(_EXTRA) and any(isinstance(item, Tensor) for item in value.values())
    ]


def _wrong(key: str, value: Any, own: Tensor) -> str:
    """Why a value cannot be copied to the tensor of the model; "" where it can."""
    if not isinstance(value, Tensor):
        return (
            f"{key} is a {type(value).__name__} in the checkpoint; expected a tensor of shape {tuple(own.shape)}: pass "
            f"what state_dict() gave"
        )
    if (
        own.shape != value.shape and not own.numel() == value.numel() == 1
    ):  # modules load a number with and without axis
        return (
            f"{key} has shape {tuple(value.shape)} in the checkpoint; expected {tuple(own.shape)}: use the checkpoint "
            f"of a network of this size"
        )
    try:
        torch.empty_like(own, device="cpu" if own.is_meta else None).copy_(value)
    except Exception as error:  # each kind of tensor has errors of its own
        return (
            f"{key} cannot be copied from the checkpoint, where it is {value.layout}, {value.dtype}, on {value.device} "
            f"({type(error).__name__}); expected a dense tensor with values: use to_dense() of a sparse one, "
            f"dequantize() of a quantised one, and load one on meta again"
        )
    return ""
