"""The backends that this machine has, as parameters of tests."""

import pytest

from groupnorm.ops import cpu, triton

_MISSING = {"cpu": cpu.unavailable(), "triton": "" if triton.INTERPRETED else "Triton's interpreter is off"}


def _parameters(*names: str) -> list[object]:
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(_MISSING.get(name)), reason=_MISSING.get(name, "")))
        for name in names
    ]


COMPILED = _parameters("cpu", "triton")
by_compiled_backend = pytest.mark.parametrize("backend", COMPILED)
by_backend = pytest.mark.parametrize("backend", [*_parameters("reference", "native"), *COMPILED])
