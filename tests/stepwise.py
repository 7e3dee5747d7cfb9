"""Train a layer step by step beside its definition, or beside itself compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from agreement import Case, Norm, Outcome, make_case, run
from tolerances import rounding

PARTITIONED = "aot_eager_decomp_partition"
"""Compiles as inductor does, with its choice of what the backward pass computes again, but runs operations of torch."""


def drifting(shape: tuple[int, ...], steps: int) -> list[Case]:
    """Cases whose input grows and moves from step to step, so that no running statistic is that of the batch."""
    weight = make_case(shape).weight
    cases = [make_case(shape) for _ in range(steps)]
    return [Case(case.x * 1.3**step + 0.4 * step, weight, case.bias, case.upstream) for step, case in enumerate(cases)]


def function_of(layer: nn.Module) -> Norm:
    """The layer as a function of its input and parameters, whose buffers it still moves."""
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))


def assert_close(actual: Outcome, expected: Outcome, x: Tensor) -> None:
    """Assert that output and gradients differ by the rounding of float64 alone."""
    for name, want in vars(expected).items():
        bound = rounding(torch.float64, x, want)
        torch.testing.assert_close(
            getattr(actual, name), want, rtol=0, atol=bound, msg=lambda m, name=name: f"{name}: {m}"
        )


def assert_follows(layer: nn.Module, definition: Norm, cases: Iterable[Case]) -> None:
    """Assert that layer and definition, both of which remember, agree in output and gradients at every step."""
    for case in cases:
        assert_close(run(function_of(layer), case), run(definition, case), case.x)


def assert_compiles(layer: nn.Module, shape: tuple[int, ...], steps: int) -> None:
    """Assert that the whole layer compiles, and that outputs, gradients and state stay those of the layer."""
    torch.compiler.reset()
    layer = layer.double()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend=PARTITIONED)
    for case in drifting(shape, steps):
        assert_close(*(train_step(each, case) for each in (compiled, layer)), case.x)
        torch.testing.assert_close(compiled._orig_mod.state_dict(), layer.state_dict())


def train_step(layer: nn.Module, case: Case) -> Outcome:
    """Output and gradients, with the parameters of the layer."""
    x = case.x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(case.upstream)
    return Outcome(y.detach(), x.grad, layer.weight.grad, layer.bias.grad)
