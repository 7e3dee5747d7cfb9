"""No wrong norm passes: each here is broken in a way that kernels break."""

import pytest
import torch

from groupnorm.bench.cases import Case, Shape
from groupnorm.bench.check import errors, refusal, right, worst
from groupnorm.bench.contenders import eager, ours
from groupnorm.bench.tensors import tensors

CASE = Case(Shape((2, 16, 12, 12), 4), "fp32", "contiguous", "silu")


class Changed(torch.autograd.Function):
    """The identity, with a gradient that was changed."""

    @staticmethod
    def forward(ctx, y, change):
        ctx.change = change
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return ctx.change(dy.clone()), None


def output(change):
    return lambda case: lambda x, w, b: change(eager(case)(x, w, b).clone())


def gradient(change):
    return lambda case: lambda x, w, b: Changed.apply(eager(case)(x, w, b), change)


def last_to(value):
    def change(t):
        t[(-1,) * t.dim()] = value
        return t

    return change


def of_input(change):
    return lambda case: lambda x, w, b: eager(case)(Changed.apply(x, change), w, b)


def found(make, case=CASE):
    given = tensors(case, "cpu")
    expected = right(case, given)
    return errors(case, make(case), given, expected), errors(case, eager(case), given, expected)


@pytest.mark.parametrize("case", [CASE, CASE._replace(dtype="bf16", activation="relu", layout="channels-last")])
def test_what_is_right_passes(case):
    mine, torchs = found(ours, case)
    assert set(mine) == {"y", "dx", "dweight", "dbias"}
    assert refusal(mine, torchs) == ""
    assert worst(mine) < 8


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (output(lambda y: y * 1.0001), {"y", "dx", "dweight", "dbias"}),
        (output(last_to(0.0)), {"y", "dx"}),
        (output(last_to(float("nan"))), {"y"}),
        (gradient(torch.zeros_like), {"dx", "dweight", "dbias"}),
        (gradient(last_to(9.0)), {"dx"}),
        (of_input(torch.zeros_like), {"dx"}),
        (of_input(last_to(float("inf"))), {"dx"}),
        (lambda case: lambda x, w, b: eager(case)(x, w.detach() + 0 * w, b), {"dweight"}),
    ],
    ids=["scaled", "one-output", "nan", "dead-backward", "one-gradient", "no-dx", "inf", "no-dweight"],
)
def test_what_is_wrong_is_refused_and_named(make, names):
    reason = refusal(*found(make))
    assert all(f"{name} is off by" in reason for name in names), reason


def test_all_groups_of_a_small_input():
    assert [part.channels.start for part in right(CASE, tensors(CASE, "cpu"))] == [0, 4, 8, 12]


def test_some_whole_groups_of_a_large_input(monkeypatch):
    monkeypatch.setattr("groupnorm.bench.check._ENOUGH", 100)
    given = tensors(CASE._replace(shape=Shape((2, 64, 4, 4), 16)), "cpu")
    case = CASE._replace(shape=Shape((2, 64, 4, 4), 16))
    parts = right(case, given)
    assert [part.channels for part in parts] == [slice(0, 4), slice(32, 36), slice(60, 64)]
    assert parts[0].values["y"].shape == (2, 4, 4, 4)
    wrong = errors(case, output(last_to(0.0))(case), given, parts)
    assert refusal(wrong, errors(case, eager(case), given, parts)).startswith("y is off")


def test_an_error_of_torchs_is_allowed_and_more_is_not():
    assert refusal({"y": 50.0}, {"y": 51.0}) == ""
    assert refusal({"y": 52.0}, {"y": 51.0}) == "y is off by 52 eps, torch's by 51 eps"
    assert refusal({"y": 7.9}, {"y": 0.0}) == ""
    assert refusal({"y": None}, {"y": 51.0}).startswith("y is off by what is not finite")
    assert refusal({"y": None}, {"y": None}) == "", "where torch overflows nothing is promised"


def test_at_the_kink_of_a_relu_no_gradient_is_wrong():
    """Statistics that are rounded otherwise turn the sign of an element here and there, which is no error."""
    case = CASE._replace(activation="relu", shape=Shape((2, 16, 64, 64), 4))
    given = tensors(case, "cpu")
    expected = right(case, given)

    def nudged(x, w, b):
        return eager(case)(x, w, b + 2e-4) - 2e-4 * (eager(case)(x, w, b) > 0)

    turned = (eager(case)(given.x, given.weight, given.bias) > 0) != (nudged(given.x, given.weight, given.bias) > 0)
    assert turned.any(), "or this shows nothing"
    found, torchs = (errors(case, norm, given, expected) for norm in (nudged, eager(case)))
    gradients = ("dx", "dweight", "dbias")
    assert refusal({name: found[name] for name in gradients}, torchs) == ""
