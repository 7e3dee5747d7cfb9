"""Compile every kernel for a GPU that need not be there, as calls of real shapes would, and print what became of them.

Run with TRITON_INTERPRET=0. Prints a JSON list of: call, kernel, registers, bytes spilled, widest loads in bytes.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)  # Hopper: H100, H200
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
HALF, FULL = torch.bfloat16, torch.float32
CALLS: dict[str, tuple[tuple[int, ...], int, str, torch.dtype, str | None]] = {
    "diffusion 16x16": ((2, 1920, 16, 16), 32, "contiguous", HALF, "silu"),
    "diffusion 64x64": ((2, 320, 64, 64), 32, "contiguous", HALF, "silu"),
    "diffusion 64x64 channels last": ((2, 320, 64, 64), 32, "channels last", HALF, "silu"),
    "diffusion 8x8 channels last": ((2, 2560, 8, 8), 32, "channels last", HALF, "silu"),
    "ResNet-50": ((32, 256, 56, 56), 32, "contiguous", HALF, "relu"),
    "VAE": ((1, 128, 1024, 1024), 32, "contiguous", HALF, "silu"),
    "VAE channels last": ((1, 128, 1024, 1024), 32, "channels last", FULL, "gelu_tanh"),
    "Mask R-CNN": ((2, 256, 200, 336), 32, "contiguous", FULL, None),
    "no positions": ((1024, 512), 8, "contiguous", torch.float16, "gelu"),
    "double": ((2, 64, 64, 64), 4, "contiguous", torch.float64, "gelu"),
}


class Driver:
    """As much of a device as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def assembled(ptx: str) -> tuple[int, int]:
    """Registers, and bytes spilled, of a kernel."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [PTXAS, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", told), re.search(r"(\d+) bytes spill stores", told)
    assert registers
    assert spilled
    return int(registers[1]), int(spilled[1])


def widest_load(ptx: str) -> int:
    """Bytes that a thread loads at once, from global memory to registers or to shared memory."""
    vectors = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+) ", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (?:0x)?(\w+)", ptx)
    return max([int(n or 1) * int(bits) // 8 for n, bits in vectors] + [int(size, 16) for size in copies])


def compiled(name: str) -> list[dict[str, Any]]:
    """The kernels of one call, forward and backward, with its tensors replaced by short ones: only pointers matter."""
    from groupnorm.ops.spec import Spec
    from groupnorm.ops.triton import backward, forward

    shape, groups, layout, dtype, activation = CALLS[name]
    spec = Spec("cuda", dtype, shape, layout, groups, activation, True)
    x, parameter, statistics = torch.empty(64, dtype=dtype), torch.empty(64), torch.empty(64, dtype=spec.accumulates)
    kernels: dict[str, str] = {}
    original = JITFunction.run

    def only_compile(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = original(self, *args, grid=grid, warmup=True, **options)
        kernels[f"{self.fn.__module__.split('.')[-1]}.{self.fn.__name__}"] = kernel.asm["ptx"]

    JITFunction.run = only_compile
    forward(spec, x, parameter, parameter, 1e-5)
    backward(spec, x, x, parameter, parameter, statistics, statistics)
    JITFunction.run = original
    keys = ("call", "kernel", "registers", "spilled", "load")
    return [
        dict(zip(keys, (name, kernel, *assembled(ptx), widest_load(ptx)), strict=True))
        for kernel, ptx in kernels.items()
    ]


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    print(json.dumps([kernel for name in CALLS for kernel in compiled(name)], indent=1))
