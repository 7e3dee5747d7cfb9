"""What a figure depends on: the device, the versions, the code, and who else is at work on the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import groupnorm.ops
from groupnorm.environment import cpu_name, environment
from groupnorm.errors import ArgumentError
from groupnorm.ops.gpu import architecture

_CODE = ("*.py", "libgroupnorm_*.so", "triton/*.py", "../functional.py")
_L2 = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")

Facts = dict[str, Any]


def machine(device: str, threads: int) -> Facts:
    """The device: ``name``, ``l2`` (bytes, None where unknown), of a CPU its instructions and threads, of a GPU its
    architecture and what drives it.

    Raises:
        ArgumentError: there is no such device.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentError(
                "--device cuda, and torch sees no GPU; expected one: use --device cpu, and `groupnorm doctor` says why"
            )
        found = torch.cuda.get_device_properties()
        return {
            "device": device,
            "name": found.name,
            "l2": found.L2_cache_size,
            "architecture": architecture(torch.device(device)),
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "triton": importlib.metadata.version("triton"),
        }
    if device != "cpu":
        raise ArgumentError(f"--device {device}; expected cpu or cuda")
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"device": device, "name": cpu_name(), "l2": _l2(), "instructions": instructions, "threads": threads}


def slug(facts: Facts) -> str:
    """The device as the name of a file, such as ``intel-xeon-processor-2-threads``."""
    plain = re.sub(r"\((R|TM)\)|@.*|\bCPU\b", " ", facts["name"], flags=re.I).lower()
    threads = f"-{facts['threads']}-threads" if "threads" in facts else ""
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") + threads


@cache
def stamp() -> Facts:
    """The versions that a figure was measured with: a result of other ones is measured again."""
    versions = environment()
    return {key: versions[key] for key in ("groupnorm", "revision", "torch")} | {"kernels": _kernels()}


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


@contextmanager
def watching_others() -> Iterator[Facts]:
    """Fills in ``others``: cores that other processes kept busy meanwhile; None where the system does not say.

    One busy neighbour makes two threads wait for each other in every parallel region, so a figure tells how quiet its
    machine was.
    """
    found: Facts = {"others": None}
    before, begin = _busy(), time.monotonic()
    yield found
    after = _busy()
    if before is not None and after is not None:
        found["others"] = round(max(0.0, after - before) / (time.monotonic() - begin), 2)


def _busy() -> float | None:
    """Seconds that all cores have worked for others than this process and its children, or for other machines."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _, _, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def _kernels() -> str:
    """A digest of the code that is timed."""
    found = hashlib.sha256()
    folders = [Path(folder) for folder in groupnorm.ops.__path__]
    for path in sorted({path for folder in folders for pattern in _CODE for path in folder.glob(pattern)}):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _driver() -> str:
    """The version of the GPU's driver; "unknown" where nothing tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _l2() -> int | None:
    try:
        size = _L2.read_text().strip()
        return int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return None
