"""Who computes a call: the backends, and which of them is chosen.

``reference`` and ``native`` are composed of differentiable operations. ``cpu`` and ``triton`` are compiled; each is a
module with the functions of :class:`Compiled`, and no backend imports another.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from groupnorm.errors import BackendError, UnknownNameError
from groupnorm.ops.spec import Spec
from groupnorm.tables import html_table

COMPOSED = ("reference", "native")
COMPILED = ("cpu", "triton")
BACKENDS = (*COMPOSED, *COMPILED)
AUTO = "auto"

PREFERRED = os.environ.get("GROUPNORM_BACKEND", AUTO)
"""What "auto" takes where it can run, whatever is faster; :data:`AUTO` is nothing in particular."""

_NEEDS = {"triton": "triton"}


class Compiled(Protocol):
    """A compiled backend. Tensors are dense in the layout of the spec; statistics are ``[N, G]``, in ``accumulates``.

    With ``z = (x - mean) * rstd * weight + bias`` and ``y = act(z)``, upstream ``dy``, ``d = act'(z) * dy``,
    ``g = d * weight`` and means over the group: ``dx = rstd * (g - mean(g) - xhat * mean(g * xhat))``,
    ``dweight = sum of d * xhat``, ``dbias = sum of d``.
    """

    FEW_ELEMENTS: int
    """Fewer are faster without it, whatever else is asked."""

    def refusal(self, spec: Spec) -> str:
        """Why it cannot do what is asked; "" where it can."""

    def drawback(self, spec: Spec) -> str:
        """Why another backend is faster; "" where none is."""

    def forward(
        self,
        spec: Spec,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        *,
        residual: Tensor | None = None,
        total: Tensor | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``(y, mean, rstd)``; the statistics may be None where none were given and ``spec`` needs no gradient.

        Args:
            spec: what is asked.
            x: the input.
            weight: scale ``[C]`` in any dtype; None is 1.
            bias: shift ``[C]`` in any dtype; None is 0.
            eps: added to the variance.
            residual: added to ``x``; the sum, rounded to its dtype, is written to ``total`` and normalised.
            total: may be ``out``.
            statistics: applied and returned instead of those of ``x``.
            out: receives ``y``; may be ``x``.
        """

    def statistics(self, spec: Spec, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``(mean, rstd)``."""

    def backward(
        self,
        spec: Spec,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        *,
        fixed: bool = False,
        needs: tuple[bool, bool, bool] = (True, True, True),
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """``(dx, dweight, dbias, sums)``, the second and third in ``accumulates``.

        Args:
            spec: what is asked.
            dy: gradient of the output.
            x: the input that was normalised.
            weight: scale.
            bias: shift.
            mean: as applied in the forward pass.
            rstd: as applied in the forward pass.
            fixed: the statistics did not come from ``x``: ``dx = rstd * g``, and ``sums`` is ``[2, N, G]``, the sums
                of ``g`` and of ``g * xhat`` over each group. Otherwise ``sums`` is None.
            needs: which of the first three are wanted; None is returned for the others.
        """


@dataclass(frozen=True, repr=False)
class Explanation:
    """Which backend runs a call, and why each other one does not.

    Attributes:
        chosen: its name.
        reasons: by name of the others.
        spec: what the choice was made from; None where the input is looked into and only its operations can be used.
    """

    chosen: str
    reasons: dict[str, str]
    spec: Spec | None

    def __str__(self) -> str:
        lines = [f"{self.chosen:<9} runs"] + [f"{name:<9} {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_table(f"{self.chosen} runs", ("other backend", "why not"), self.reasons.items())


@functools.cache
def compiled(name: str) -> Compiled:
    """The module of a compiled backend."""
    return cast(Compiled, importlib.import_module(f"groupnorm.ops.{name}"))


def check_name(name: str, kind: str = "backend") -> None:
    """Raise unless this is "auto" or a backend."""
    if name != AUTO and name not in BACKENDS:
        raise UnknownNameError(kind, str(name), (AUTO, *BACKENDS))


def refusal(spec: Spec, name: str) -> str:
    """Why a backend cannot run a call; "" where it can."""
    if name in COMPOSED:
        return ""
    needed = _NEEDS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        return f"the package {needed} is not installed: pip install {needed}"
    if spec.elements == 0:
        return "the input has no elements"
    return compiled(name).refusal(spec)


@functools.lru_cache(maxsize=4096)
def resolve(spec: Spec, name: str = AUTO) -> str:
    """The backend that runs a call.

    Raises:
        UnknownNameError: there is no such backend, or none as the environment variable names.
        BackendError: the backend that was named cannot run it; it is never exchanged for another.
    """
    check_name(name)
    if name == AUTO:
        check_name(PREFERRED, "backend of GROUPNORM_BACKEND")
        if PREFERRED != AUTO and not refusal(spec, PREFERRED):
            return PREFERRED
        return next((b for b in COMPILED if not refusal(spec, b) and not compiled(b).drawback(spec)), "native")
    if reason := refusal(spec, name):
        raise BackendError(name, reason)
    return name


@functools.lru_cache(maxsize=4096)
def explain(spec: Spec, name: str = AUTO) -> Explanation:
    """Which backend runs a call, and why the others do not; nothing is computed."""
    chosen = resolve(spec, name)
    reasons = {b: _why_not(spec, b, name) for b in BACKENDS if b != chosen}
    return Explanation(chosen, reasons, spec)


def _why_not(spec: Spec, backend: str, name: str) -> str:
    if reason := refusal(spec, backend):
        return f"cannot: {reason}"
    if name != AUTO:
        return f"was not asked for: backend={name!r}"
    if PREFERRED != AUTO and not refusal(spec, PREFERRED):
        return f"was not asked for: GROUPNORM_BACKEND={PREFERRED}"
    if backend == "reference":
        return "is the definition, slow, and runs when it is asked for"
    if backend == "native":
        return "is for what no compiled backend does faster"
    return compiled(backend).drawback(spec) or "another one is faster"
