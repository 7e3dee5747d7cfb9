"""What a conversion would do, told before anything is touched."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from groupnorm.errors import ArgumentError
from groupnorm.tables import count_of, html_table

if TYPE_CHECKING:
    from rich.table import Table

_SPEC = re.compile(r"(ws\+)?([a-z0-9-]+)(:c?[0-9]+)?")

NOT_SELECTED = "not selected by where="
TOO_SMALL = "cannot train on batches as small as sample_input"
STARTS = "running statistics start at 0 and 1"

Action = Literal["replace", "skip", "refuse"]


@dataclass(slots=True)
class Row:
    """What happens to one norm. It may be edited before the plan is applied.

    Attributes:
        path: of the norm; its first, where it has several.
        old: what it is.
        action: "replace", "skip", or "refuse": a plan with refused rows is not applied.
        new: the spec of what it becomes, without a number; "gn:2" is taken as new="gn" and number=2.
        channels: number of channels.
        number: of groups, examples or parts; None where the new norm has none, or for its default ("auto" for groups).
        why: what there is to say about the number; why skipped; or why refused, and the remedy.
        lost: what the new norm cannot keep.
        added: parameters that only the new norm has; an optimizer of before has to get them.
        shared: the other paths of the same module; all are replaced by one.
        rank: of its input, which "bn" has a class for each of; None where nothing tells it.
        standardized: path of the convolution or linear layer whose weight is standardised; "" for none.
    """

    path: str
    old: str
    action: Action
    new: str = ""
    channels: int = 0
    number: int | None = None
    why: str = ""
    lost: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    standardized: str = ""
    rank: int | None = None

    @property
    def becomes(self) -> str:
        """The new norm as a spec: "gn:8"."""
        number = "" if self.number is None or ":" in self.new else f":{self.number}"
        return f"{'ws+' if self.standardized else ''}{self.new}{number}"


@dataclass(repr=False)
class Plan:
    """The rows of a conversion, one for each norm of the model in the order of its modules.

    Attributes:
        to: the spec asked for.
        rows: what happens to each norm.

    Example::

        >>> plan = groupnorm.plan(model, "gn", sample_input=torch.randn(2, 3, 64, 64))
        >>> print(plan)
        >>> plan["layer1.0.bn1"].number = 8
        >>> report = groupnorm.convert_(model, plan)
    """

    to: str
    rows: list[Row] = field(default_factory=list)

    def __getitem__(self, path: str) -> Row:
        for row in self.rows:
            if path == row.path or path in row.shared:
                return row
        raise ArgumentError(f"no norm at {path!r}; expected one of {[row.path for row in self.rows]}")

    def of(self, action: Action) -> list[Row]:
        """The rows with this action."""
        return [row for row in self.rows if row.action == action]

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            ArgumentError: the text is none.
        """
        try:
            fields = json.loads(text)
            rows = [Row(**row) for row in fields["rows"]]
            for row in rows:
                row.lost, row.added, row.shared = tuple(row.lost), tuple(row.added), tuple(row.shared)
            return cls(fields["to"], rows)
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"the text is no plan ({type(error).__name__}: {error}); expected what Plan.to_json() wrote"
            ) from error

    @property
    def summary(self) -> str:
        """How many norms become what, and what they lose, in one line."""
        if not self.rows and _SPEC.fullmatch(self.to):
            return "the model has no norms over channels"
        replaced, skipped, refused = (self.of(action) for action in ("replace", "skip", "refuse"))
        become = Counter(self._label(row) for row in replaced) or Counter({self.to: 0})
        (first, count), *others = become.most_common()
        parts = [
            " and ".join([f"{count} of {len(self.rows)} norms become {first}", *(f"{n} {to}" for to, n in others)])
        ]
        parts += [f"{len(skipped)} left alone"] * bool(skipped) + [f"{len(refused)} cannot be converted"] * bool(
            refused
        )
        lost = Counter(name for row in replaced for name in row.lost)
        added = sum(len(row.added) for row in replaced)
        small, start = (sum(text in row.why for row in replaced) for text in (TOO_SMALL, STARTS))
        return (
            ", ".join(parts)
            + "".join(f"; {count} lose {name}" for name, count in lost.items())
            + f"; {count_of(added, 'new parameter')}" * bool(added)
            + f"; the {STARTS.replace('start', f'of {start} start')}" * bool(start)
            + f"; {small} {TOO_SMALL}" * bool(small)
        )

    def _label(self, row: Row) -> str:
        """What a row becomes, as coarsely as it was asked for: "gn" if that is, whatever the groups."""
        asked = _SPEC.fullmatch(self.to)
        if asked is None:  # a plan that is not of specs
            return self.to
        spec, number = asked[2], asked[3] or ""
        new = row.becomes.removeprefix("ws+").partition(":")[0]
        if new != spec or not number:
            return f"{'ws+' if row.standardized else ''}{new}"
        return f"{'ws+' if row.standardized else ''}{spec}{number}" if number.startswith(":c") else row.becomes

    def cells(self) -> list[tuple[str, str, str, str]]:
        """Path, old norm, new norm and remarks of each row, as texts."""
        instead = {"skip": "-", "refuse": "refused"}
        return [
            (
                " = ".join((row.path or "(the model)", *row.shared)),
                row.old,
                instead.get(row.action, row.becomes),
                row.why,
            )
            for row in self.rows
        ]

    def _folded(self) -> tuple[Plan, str]:
        """The plan without the rows that where= leaves out, and a line that counts them."""
        kept = [row for row in self.rows if (row.action, row.why) != ("skip", NOT_SELECTED)]
        left = len(self.rows) - len(kept)
        return Plan(self.to, kept), f"{count_of(left, 'more norm')}, {NOT_SELECTED}" if left else ""

    def __str__(self) -> str:
        plan, more = self._folded()
        rows = [("path", "norm", "becomes", "remark"), *plan.cells()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join((*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[3])).rstrip() for row in rows]
        return "\n".join([self.summary, "", *lines, *([more] if more else [])])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_table(self.summary, ("path", "norm", "becomes", "remark"), self.cells())

    def __rich__(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        plan, more = self._folded()
        table = Table(title=self.summary, caption=more or None, box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("path", "norm", "becomes", "remark"):
            table.add_column(name, overflow="fold")
        styles = {"replace": "", "skip": "dim", "refuse": "bold red"}
        for row, cells in zip(plan.rows, plan.cells(), strict=True):
            table.add_row(*(Text(cell) for cell in cells), style=styles[row.action])
        return table
