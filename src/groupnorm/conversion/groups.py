"""How many groups a layer gets: a number, channels per group, "auto" or a function, and other ones for some paths."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from groupnorm.conversion.selection import check_takes, fits
from groupnorm.errors import ArgumentError, divisors
from groupnorm.nn.norm import MAX_GROUPS

MIN_CHANNELS = 2
"""Channels that "auto" leaves in a group, where there are as many: with one, group norm would be instance norm."""

Policy = int | str | Callable[[int, int | None], int]
"""Groups, "c16" (channels per group), "auto", or a function of channels and positions (None where not known)."""

Groups = Policy | Mapping[str | re.Pattern[str], Policy] | None

_BY_SIZE = re.compile("c([1-9][0-9]*)")


def check_groups(groups: Any) -> None:
    """Raise where a mapping has keys that are no patterns, or a function takes other arguments."""
    if isinstance(groups, Mapping):
        if wrong := [key for key in groups if not isinstance(key, (str, re.Pattern))]:
            raise ArgumentError(
                f"groups={groups!r} has the key {wrong[0]!r}; expected globs over paths or compiled regular "
                f"expressions, as in {{'layer4.*': 16, '*': 'auto'}}"
            )
        for pattern, policy in groups.items():
            if callable(policy):
                check_takes(policy, f"groups[{_shown(pattern)}]", "channels", "positions")
    elif callable(groups):
        check_takes(groups, "groups", "channels", "positions")


def resolve_at(groups: Groups, path: str, channels: int, positions: int | None) -> tuple[int, str]:
    """As :func:`resolve`, for the layer at ``path``, which an error names, with the pattern that fits it."""
    try:
        return resolve(policy_of(groups, path), channels, positions)
    except ArgumentError as error:
        if not isinstance(groups, Mapping):
            raise
        pattern = next(pattern for pattern in groups if fits(pattern, path))
        raise ArgumentError(f"{path!r}, which the pattern {_shown(pattern)} fits: {error}") from error


def _shown(pattern: str | re.Pattern[str]) -> str:
    return repr(pattern if isinstance(pattern, str) else pattern.pattern)


def policy_of(groups: Groups, path: str) -> Policy:
    """The policy for the layer at ``path``: the first whose pattern fits, "auto" where none does.

    Args:
        groups: a policy for all, or policies by pattern: a glob such as ``"layer4.*"``, or a compiled regular
            expression that is searched for.
        path: of the layer.
    """
    if isinstance(groups, Mapping):
        for pattern, policy in groups.items():
            if fits(pattern, path):
                return policy
        return "auto"
    return "auto" if groups is None else groups


def resolve(policy: Policy, channels: int, positions: int | None) -> tuple[int, str]:
    """The number of groups, and what there is to say about it.

    "auto" is the most up to :data:`MAX_GROUPS` that leave :data:`MIN_CHANNELS` channels and more than one element in a
    group. A number that does not divide the channels gives the most below it by the same rule, and says so.

    Args:
        policy: see :data:`Policy`.
        channels: of the layer.
        positions: of its input, the fewest seen; None: not known.

    Raises:
        ArgumentError: no such policy, or a number below 1.
    """
    if callable(policy):
        policy = policy(channels, positions)
    if policy == "auto":
        return _most(MAX_GROUPS, channels, positions, "")
    size = _BY_SIZE.fullmatch(policy) if isinstance(policy, str) else None
    wanted = max(1, channels // int(size[1])) if size else _checked(policy)
    if channels % wanted == 0 and (size is None or channels % int(size[1]) == 0):
        return wanted, ""
    asked = f"{size[1]} channels a group do" if size else f"{wanted} groups do"
    return _most(wanted, channels, positions, f"{asked} not divide {channels} channels")


def _most(limit: int, channels: int, positions: int | None, remark: str) -> tuple[int, str]:
    """The most groups up to ``limit``."""
    # Where the positions are not known, the worst: a map of one.
    several = [d for d in divisors(channels) if d <= limit and channels // d * (positions or 1) > 1]
    groups = max([d for d in several if channels // d >= MIN_CHANNELS] or several or [1])
    if groups == 1 and channels > 1 and limit > 1:
        why = remark or f"no more groups of {MIN_CHANNELS} channels divide {channels}"
        return 1, f"{why}: one group, which is layer norm"
    return groups, remark and f"{remark}: {groups} of {channels // groups}"


def _checked(groups: Any) -> int:
    try:
        number = operator.index(groups)  # NumPy's integers too
    except TypeError:
        number = 0
    if number < 1 or isinstance(groups, bool):
        raise ArgumentError(
            f"groups={groups!r}; expected a number of at least 1, 'c16' for 16 channels a group, 'auto', or a function "
            f"of channels and positions that returns a number"
        )
    return number
