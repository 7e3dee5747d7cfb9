"""The exception of this package."""

from groupnorm.errors import GroupNormError


class DataError(GroupNormError, ValueError):
    """Data is missing, damaged or not of the form expected. The message says what to do."""
