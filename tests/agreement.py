"""Run a normalisation forward and backward, and compare it with the definition in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groupnorm.functional import ACTIVATIONS
from groupnorm.ops import reference
from groupnorm.sets import SharedSet
from tolerances import bounds

Norm = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
"""``norm(x, weight, bias)``"""


@dataclass(frozen=True)
class Case:
    """An input ``[N, C, *]``, its parameters ``[C]`` and a gradient from above."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    upstream: Tensor

    def double(self) -> Case:
        """The same numbers in float64."""
        return Case(*(None if t is None else t.double() for t in (self.x, self.weight, self.bias, self.upstream)))


@dataclass(frozen=True)
class Outcome:
    """The output, and the gradients of ``(output * upstream).sum()``."""

    y: Tensor
    dx: Tensor
    dweight: Tensor | None
    dbias: Tensor | None


def make_case(shape: tuple[int, ...], *, affine: str = "weight bias", dtype: torch.dtype = torch.float64) -> Case:
    """Random numbers with a mean that is not 0, a variance that is not 1, and parameters that are not 1 and 0."""
    channels = shape[1]
    return Case(
        x=(torch.randn(shape, dtype=torch.float64) * 1.5 + 0.5).to(dtype),
        weight=(torch.rand(channels, dtype=torch.float64) + 0.5).to(dtype) if "weight" in affine else None,
        bias=torch.randn(channels, dtype=torch.float64).to(dtype) if "bias" in affine else None,
        upstream=torch.randn(shape, dtype=torch.float64).to(dtype),
    )


def run(norm: Norm, case: Case) -> Outcome:
    """Output and gradients of ``norm``; the tensors of the case keep their strides."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (case.x, case.weight, case.bias)]
    y = norm(*leaves)
    y.backward(case.upstream)
    return Outcome(y.detach(), *(None if t is None else t.grad for t in leaves))


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output of ``function(*inputs)``, and the gradients of ``(output * upstream).sum()`` by each input."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def definition(shared: SharedSet, *, eps: float = 1e-5, activation: str | None = None) -> Norm:
    """The definition over ``shared``, followed by the activation."""
    act = (lambda y: y) if activation is None else ACTIVATIONS[activation]
    return lambda x, weight, bias: act(reference.normalize(x, shared, weight, bias, eps))


def assert_agrees(
    actual: Outcome | Tensor, case: Case, shared: SharedSet, *, eps: float = 1e-5, activation: str | None = None
) -> None:
    """Assert that ``actual`` has the case's dtypes and shapes, and differs from the definition by rounding alone.

    Args:
        actual: output and gradients, or the output alone.
        case: what they were computed from.
        shared: which elements share statistics.
        eps: added to the variance.
        activation: applied to the normalised output.
    """
    exact = case.double()
    expected = run(definition(shared, eps=eps, activation=activation), exact)
    ones = torch.ones(exact.x.shape[1], dtype=torch.float64)
    bound = bounds(
        exact.x,
        ones if exact.weight is None else exact.weight,
        0 * ones if exact.bias is None else exact.bias,
        exact.upstream,
        shared,
        dtype=case.x.dtype,
        eps=eps,
        activation=activation,
    )
    like = {"y": case.x, "dx": case.x, "dweight": case.weight, "dbias": case.bias}
    got = {"y": actual} if isinstance(actual, Tensor) else vars(actual)
    for name, value in got.items():
        want, model = getattr(expected, name), like[name]
        assert (value is None) == (want is None), f"{name}: got {value}, expected {want}"
        if value is not None:
            assert (value.shape, value.dtype) == (model.shape, model.dtype), name
            torch.testing.assert_close(
                value.double(), want, rtol=0, atol=getattr(bound, name), msg=lambda m, name=name: f"{name}: {m}"
            )
