"""Metrics in words, and what the store keeps of a task."""

import math

import pytest

from groupnorm.lab.common.metric import ERROR, Metric, TaskRecord

RETURN = Metric("mean_return", "mean return", low=None, higher_is_better=True)
LENGTH = Metric("length", "length", "cm")


def test_a_value_in_words():
    assert ERROR.text(12.345) == "12.3%"
    assert ERROR.text(-0.5, 2) == "−0.50%"
    assert LENGTH.text(3.0) == "3.0 cm"
    assert RETURN.text(-20.25, 2) == "−20.25"


def test_its_name_and_keys():
    assert (ERROR.key, ERROR.train_key, ERROR.best_key) == ("error", "train_error", "best_error")
    assert [metric.in_unit for metric in (ERROR, LENGTH, RETURN)] == ["error in percent", "length (cm)", "mean return"]
    assert [metric.of_differences for metric in (ERROR, LENGTH, RETURN)] == [" points", " cm", ""]
    assert Metric("rmse", "RMSE").title == "RMSE"
    assert RETURN.title == "Mean return"


@pytest.mark.parametrize(("metric", "best"), [(ERROR, 1.0), (RETURN, 3.0)])
def test_the_best_of_some_values(metric, best):
    assert metric.best([2.0, 1.0, 3.0]) == best
    assert math.isnan(metric.best([]))


def test_a_request_without_a_task_is_classification():
    assert TaskRecord.of({}) == TaskRecord("classification", "image", ERROR)
    assert TaskRecord().rate == "images_per_second"
    own = TaskRecord("control", "episode", RETURN)
    assert TaskRecord.of({"task": own.as_json() | {"chance": 1.0}}) == own
