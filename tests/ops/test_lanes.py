"""The vectors of the C++ kernels against scalar arithmetic, for each instruction set that this processor has."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SOURCES = Path(__file__).parents[2] / "csrc"
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
SETS = {"avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def available(name: str) -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    has_bf16 = capability == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    return {"avx2": capability in ("AVX2", "AVX512"), "avx512": capability == "AVX512", "avx512_bf16": has_bf16}[name]


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("name", SETS)
def test_vectors_compute_as_scalars_do(name: str, tmp_path: Path) -> None:
    if not available(name):
        pytest.skip(f"this processor has no {name}")
    program = tmp_path / "lanes_test"
    options = ["-std=c++20", "-O2", "-fno-math-errno", *SETS[name], f"-DINSTRUCTION_SET={name}"]
    subprocess.run([COMPILER, *options, "-o", program, SOURCES / "lanes_test.cpp"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:3000]
