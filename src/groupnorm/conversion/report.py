"""What a conversion did, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

from groupnorm.conversion.plan import Plan, Row
from groupnorm.errors import ConversionError


@dataclass(repr=False)
class Report:
    """What :func:`groupnorm.convert_` did.

    Attributes:
        plan: that was carried out.
        notes: what else there is to know, such as lists of the model that still hold an old norm.
    """

    plan: Plan
    notes: list[str] = field(default_factory=list)
    _undo: list[Callable[[], object]] = field(default_factory=list, repr=False)
    _undone: bool = field(default=False, repr=False)

    @property
    def replaced(self) -> list[Row]:
        """The rows of the norms that were replaced."""
        return self.plan.of("replace")

    @property
    def counts(self) -> dict[str, int]:
        """How many norms became what: ``{"gn:32": 12, "gn:16": 1}``."""
        return dict(Counter(row.becomes for row in self.replaced))

    def undo(self) -> None:
        """Put the old norms back in their places, in the model and in the optimisers, and their values of before.

        Values of other parameters stay: what was trained since is not untrained. Of several conversions the last is
        undone first.

        Raises:
            ConversionError: it was undone before, or the model has other modules now than it left; nothing is changed.
        """
        if self._undone:
            raise ConversionError("this conversion was undone before; expected to be called once")
        for step in self._undo:
            getattr(step, "check", lambda: None)()  # those that can fail tell it before any is done
        self._undone = True
        for step in reversed(self._undo):
            step()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        notes = "".join(f"\n<p>{escape(note)}</p>" for note in self.notes)
        return f"{self.plan._repr_html_()}{notes}"

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {spec}" for spec, count in self.counts.items()) or "nothing replaced"
        return "\n".join([f"{self.plan.summary}: {counts}", *self.notes])
