"""Checkpoints of a model from before a conversion for the model after it, and the other way round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from groupnorm.conversion.probe import known_facts
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.nn.weight_standardization import is_standardized

_ORIGINAL = "parametrizations.weight.original"


@dataclass(frozen=True)
class Loaded:
    """Which keys of a checkpoint went where.

    Attributes:
        loaded: keys of the model that got a value.
        renamed: key of the checkpoint -> key of the model, where they differ: standardised weights.
        dropped: keys of the checkpoint that only its norms have, such as running statistics.
        kept: keys of the model that only its norms have; they keep their values.
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


def load_checkpoint_(model: nn.Module, checkpoint: Mapping[str, Any]) -> Loaded:
    """Load a state dict that was saved before, or after, the norms of ``model`` were converted.

    Only the norms may differ: their running statistics, the parameters that only one kind has, and whether the weights
    before them are standardised. Norms that no rule knows have to be the same. A checkpoint does not tell what its
    parametrizations are: in a model without one, the weight under a parametrization of a convolution or linear layer is
    taken for one that was standardised, and ``renamed`` names it.

    Args:
        model: the network; in place.
        checkpoint: a state dict of the same network with other norms.

    Returns:
        Which keys went where.

    Raises:
        ConversionError: other keys differ; nothing is loaded.
        ArgumentError: a value has another shape, or ``checkpoint`` is no state dict; nothing is loaded.

    Example::

        >>> converted = groupnorm.convert(torchvision.models.resnet50(), "gn")
        >>> print(groupnorm.load_checkpoint_(converted, torch.load("resnet50-of-batch-norm.pt")))
    """
    _check_state_dict(checkpoint)
    own = model.state_dict()
    modules = dict(model.named_modules(remove_duplicate=False))
    norms = {path for path, module in modules.items() if known_facts(module) is not None}
    renamed: dict[str, str] = {}
    found: dict[str, Any] = {}
    dropped, unknown = [], []
    for key, value in checkpoint.items():
        names = [name for name in (key, _standardized(key, modules), _plain(key, modules)) if name in own]
        if names:
            found[names[0]] = value
            if names[0] != key:
                renamed[key] = names[0]
        elif _parent(key) in norms:
            dropped.append(key)
        else:
            unknown.append(key)
    left = [key for key in own if key not in found]
    kept = [key for key in left if _parent(key) in norms and _name(key) not in ("weight", "bias")]
    missing = [key for key in left if key not in kept]
    if unknown or missing:
        raise ConversionError(
            f"the checkpoint has {_some(unknown)} that the model lacks, and lacks {_some(missing)}; expected "
            f"differences in norms alone: {_remedy(own, checkpoint)}"
        )
    for key, value in found.items():
        if _name(key) != _EXTRA:
            _check_value(key, value, own[key])
    for key, value in found.items():
        if _name(key) == _EXTRA:  # made by the module, of any type, so that there is no tensor to copy to
            modules[_parent(key)].set_extra_state(value)
    with torch.no_grad():
        for key, value in found.items():
            if _name(key) != _EXTRA:
                own[key].copy_(value)
    return Loaded(tuple(found), renamed, tuple(dropped), tuple(kept))


_EXTRA = "_extra_state"


def _check_state_dict(checkpoint: Any) -> None:
    """Raise where a checkpoint is no state dict, or holds one."""
    if not isinstance(checkpoint, Mapping):
        what, remedy = f"a {type(checkpoint).__name__}", "pass what state_dict() gave"
        if isinstance(checkpoint, (str, PathLike)):
            what = f"the path {str(checkpoint)!r}"
            remedy = "load it with torch.load, or safetensors.torch.load_file"
        elif isinstance(checkpoint, nn.Module):
            remedy = "pass its state_dict()"
        raise ArgumentError(f"checkpoint is {what}; expected a state dict: {remedy}")
    for key, value in checkpoint.items():
        holds = isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())
        if holds and _name(key) != _EXTRA:
            raise ArgumentError(
                f"the checkpoint has a mapping with tensors under {key!r}; expected a state dict: pass "
                f"checkpoint[{key!r}], if that is the one of the model"
            )


def _check_value(key: str, value: Any, own: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"{key} is a {type(value).__name__} in the checkpoint; expected a tensor of shape {tuple(own.shape)}: pass "
            f"what state_dict() gave"
        )
    if own.shape != value.shape:
        raise ArgumentError(
            f"{key} has shape {tuple(value.shape)} in the checkpoint; expected {tuple(own.shape)}: use the checkpoint "
            f"of a network of this size"
        )


def _some(keys: list[str]) -> str:
    """The first of these keys, and how many more there are."""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{keys[:5]}{more}" if keys else "nothing"


def _remedy(own: Collection[str], checkpoint: Collection[str]) -> str:
    """What to do about a checkpoint of other keys: most often all of one side begin with the same word."""
    if word := _word_before(checkpoint, own):
        return (
            f"its keys begin with {word!r}, those of the model do not: pass "
            f"{{key.removeprefix({word!r}): value for key, value in checkpoint.items()}}"
        )
    if word := _word_before(own, checkpoint):
        return f"the keys of the model begin with {word!r}, those of the checkpoint do not: pass model.{word[:-1]}"
    return "load it with model.load_state_dict if it is of another network"


def _word_before(longer: Collection[str], shorter: Collection[str]) -> str:
    """The word, such as "module.", that only one of two sets of keys has before each key; "" for none."""
    words = {key.partition(".")[0] + "." for key in longer}
    word = words.pop() if len(words) == 1 else ""
    shared = bool(set(longer) & set(shorter))
    return word if not shared and {key.removeprefix(word) for key in longer} & set(shorter) else ""


def _name(key: str) -> str:
    """The name that a key has in its module, also under a parametrization."""
    return key.removesuffix(".original").rpartition(".")[2]


def _parent(key: str) -> str:
    """Path of the module that a key belongs to, that of the norm for what a norm has under a parametrization."""
    path, _, name = key.rpartition(".")
    return path.partition(".parametrizations.")[0] if name == "original" else path


def _standardized(key: str, modules: Mapping[str, nn.Module]) -> str:
    """The key of a plain weight where the model standardises it, and does nothing else to it; "" elsewhere."""
    path, _, name = key.rpartition(".")
    layer = modules.get(path)
    if name != "weight" or layer is None or not is_standardized(layer):
        return ""
    steps = layer.parametrizations["weight"]  # type: ignore[index]
    return ".".join(filter(None, (path, _ORIGINAL))) if len(steps) == 1 else ""


def _plain(key: str, modules: Mapping[str, nn.Module]) -> str:
    """The key that a weight under a parametrization has without one; "" elsewhere than in layers with such weights."""
    if not key.endswith(_ORIGINAL):
        return ""
    path = key.removesuffix(_ORIGINAL)
    return f"{path}weight" if isinstance(modules.get(path.removesuffix(".")), (_ConvNd, nn.Linear)) else ""
