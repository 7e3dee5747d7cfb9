"""Every kernel compiles for Hopper, without a GPU: nothing is spilled, and tensors are read 16 bytes at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.compile_triton import CALLS, PTXAS

pytestmark = pytest.mark.skipif(not PTXAS.exists(), reason=f"this Triton comes without NVIDIA's assembler, {PTXAS}")
READ_NUMBER_BY_NUMBER = {"settle_kernel"}
"""Partial sums of the channels of a group, few and with gaps between them."""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    script = Path(__file__).parent / "compile_triton.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_compiles_without_spilling(kernels: list[dict[str, Any]]) -> None:
    assert {k["call"] for k in kernels} == set(CALLS)
    assert {k["kernel"] for k in kernels} == set(defined())
    assert [k for k in kernels if k["spilled"]] == []


def test_tensors_are_read_16_bytes_at_a_time(kernels: list[dict[str, Any]]) -> None:
    wide = [k for k in kernels if k["kernel"].split(".")[1] not in READ_NUMBER_BY_NUMBER]
    assert [k for k in wide if k["load"] != 16] == []


def defined() -> Iterator[str]:
    """The kernels of the package, by module and name."""
    from groupnorm.ops.triton import backward_blocks, forward_blocks, looped, resident

    for module in (backward_blocks, forward_blocks, looped, resident):
        for name in vars(module):
            if name.endswith("_kernel"):
                yield f"{module.__name__.split('.')[-1]}.{name}"
