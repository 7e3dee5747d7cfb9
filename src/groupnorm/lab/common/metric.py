"""The number that a task is scored by, and what the store keeps of a task, for those who read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A number that is measured on the validation data after each epoch.

    Attributes:
        key: its name in the records; that of the training data is under ``train_KEY``.
        name: what tables and figures call it.
        unit: "%" or another; "" for none.
        low: the smallest value that it can have; None is no bound.
        high: the largest.
        higher_is_better: whether a larger value is a better one.
    """

    key: str
    name: str
    unit: str = ""
    low: float | None = 0.0
    high: float | None = None
    higher_is_better: bool = False

    @property
    def train_key(self) -> str:
        """The key of its value on the training data."""
        return f"train_{self.key}"

    @property
    def best_key(self) -> str:
        """The column of the best value of all epochs."""
        return f"best_{self.key}"

    @property
    def is_percent(self) -> bool:
        """Whether it is a percentage, so that its differences are points."""
        return self.unit == "%"

    @property
    def title(self) -> str:
        """Its name at the beginning of a sentence."""
        return self.name[0].upper() + self.name[1:]

    @property
    def in_unit(self) -> str:
        """Its name with the unit, in words."""
        return (
            f"{self.name} in percent" if self.is_percent else f"{self.name} ({self.unit})" if self.unit else self.name
        )

    def best(self, values: list[float]) -> float:
        """The best of some values; NaN of none."""
        return (max if self.higher_is_better else min)(values, default=float("nan"))

    def text(self, value: float, digits: int = 1) -> str:
        """A value with its unit, and a real minus sign."""
        unit = f" {self.unit}" if self.unit and not self.is_percent else self.unit
        return f"{value:.{digits}f}{unit}".replace("-", "−")

    @property
    def of_differences(self) -> str:
        """The unit of differences, after a space; "" for none."""
        return " points" if self.is_percent else f" {self.unit}" if self.unit else ""


ERROR = Metric("error", "error", "%", low=0.0, high=100.0)
"""The metric of classification: the share of wrong answers."""


@dataclass(frozen=True)
class TaskRecord:
    """What the store keeps of a task.

    Attributes:
        name: of the task.
        sample: what one sample is called: "image".
        metric: that it is scored by.
    """

    name: str = "classification"
    sample: str = "image"
    metric: Metric = ERROR

    @property
    def rate(self) -> str:
        """The key of the training speed: "images_per_second"."""
        return f"{self.sample}s_per_second"

    def as_json(self) -> dict[str, Any]:
        """For the request of a run."""
        return asdict(self)

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> TaskRecord:
        """The task of a request; those from before there were others are classification."""
        found = request.get("task")
        return cls() if found is None else cls(found["name"], found["sample"], Metric(**found["metric"]))
