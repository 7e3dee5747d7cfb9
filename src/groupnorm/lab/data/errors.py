"""The exception of this package, and how its messages list things."""

from collections.abc import Sequence

from groupnorm.errors import GroupNormError


class DataError(GroupNormError, ValueError):
    """Data is missing, damaged or not of the form expected. The message says what to do."""


def some(values: Sequence[str], separator: str = ", ", most: int = 10) -> str:
    """The first ``most`` of the values, and how many more there are."""
    more = len(values) - most
    return separator.join([*values[:most], *([f"and {more:,} more"] if more > 0 else [])])


def named(names: Sequence[str]) -> str:
    """The first of the names in quotes, and how many more there are; "nothing" for none."""
    return some([repr(name) for name in names]) or "nothing"


def listed(problems: Sequence[str]) -> DataError:
    """One error of many problems, each on a line."""
    return DataError(some(problems, "\n", most=100))
