"""What a norm is called in tables and figures, and which one the others are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from groupnorm.nn.catalog import CATALOG
from groupnorm.nn.own import is_own

_NAMES = {
    "ghost": "Ghost BN",
    "syncbn": "SyncBN",
    "frozen": "Frozen BN",
    "evonorm-s0": "EvoNorm-S0",
    "evonorm-b0": "EvoNorm-B0",
    "bcn-micro": "BCN-micro",
    "lrn-within": "LRN-within",
    "none": "none",
}


def label(spec: str) -> str:
    """A norm's name in a picture: "bn" is BN, "gn:c16" is GN:c16, "ws+gn" is WS+GN, "package.module:Own" is Own."""
    return "+".join(map(_part, spec.split("+")))


def _name(family: str) -> str:
    return _NAMES.get(family, family.upper() if family in CATALOG else family)


def find_baseline(norms: Sequence[str]) -> str | None:
    """The norm that the others are compared with: the first of the GN family, else the first; None of none."""
    return next((norm for norm in norms if norm.partition(":")[0] == "gn"), norms[0] if norms else None)


def _part(spec: str) -> str:
    family, colon, rest = spec.partition(":")
    return rest if is_own(spec) else _name(family) + colon + rest
