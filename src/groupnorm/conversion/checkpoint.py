"""Checkpoints of a model from before a conversion for the model after it, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from groupnorm.conversion.rules import facts
from groupnorm.errors import ArgumentError, ConversionError

_ORIGINAL = "parametrizations.{}.original"


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


def load_checkpoint_(model: nn.Module, checkpoint: Mapping[str, Tensor]) -> Loaded:
    """Load a state dict that was saved before, or after, the norms of ``model`` were converted.

    Only the norms may differ: their running statistics, the parameters that only one kind has, and whether the weights
    before them are standardised.

    Args:
        model: the network; in place.
        checkpoint: a state dict of the same network with other norms.

    Returns:
        Which keys went where.

    Raises:
        ConversionError: other keys differ; nothing is loaded.
        ArgumentError: a value has another shape; nothing is loaded.

    Example::

        >>> converted = groupnorm.convert(torchvision.models.resnet50(), "gn")
        >>> print(groupnorm.load_checkpoint_(converted, torch.load("resnet50-of-batch-norm.pt")))
    """
    own = model.state_dict()
    norms = {path for path, module in model.named_modules(remove_duplicate=False) if facts(module) is not None}
    renamed: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    dropped, unknown = [], []
    for key, value in checkpoint.items():
        names = [name for name in (key, _with_original(key), _without_original(key)) if name in own]
        if names:
            found[names[0]] = value
            if names[0] != key:
                renamed[key] = names[0]
        elif _parent(key) in norms:
            dropped.append(key)
        else:
            unknown.append(key)
    left = [key for key in own if key not in found]
    kept = [key for key in left if _parent(key) in norms and not key.endswith((".weight", ".bias"))]
    missing = [key for key in left if key not in kept]
    if unknown or missing:
        raise ConversionError(
            f"the checkpoint has {unknown or 'nothing'} that the model lacks, and lacks {missing or 'nothing'}; "
            f"expected differences in norms alone: load it with model.load_state_dict if it is of another network"
        )
    for key, value in found.items():
        if own[key].shape != value.shape:
            raise ArgumentError(
                f"{key} has shape {tuple(value.shape)} in the checkpoint; expected {tuple(own[key].shape)}: use the "
                f"checkpoint of a network of this size"
            )
    with torch.no_grad():
        for key, value in found.items():
            own[key].copy_(value)
    return Loaded(tuple(found), renamed, tuple(dropped), tuple(kept))


def _parent(key: str) -> str:
    """Path of the module that a key belongs to, that of the norm for what a norm has under a parametrization."""
    path, _, name = key.rpartition(".")
    return path.partition(".parametrizations.")[0] if name == "original" else path


def _with_original(key: str) -> str:
    path, _, name = key.rpartition(".")
    return ".".join(filter(None, (path, _ORIGINAL.format(name))))


def _without_original(key: str) -> str:
    path, middle, name = key.rpartition(".parametrizations.")
    return f"{path}.{name.removesuffix('.original')}" if middle else key
