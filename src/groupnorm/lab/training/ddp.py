"""Several processes train one cell: each takes its part of every batch, and torch's DDP averages the gradients.

The worker is process 0: it alone measures, records and saves. For each cell anew it starts the others
(:mod:`groupnorm.lab.sweeps.ddp_worker`), gives them the state it stands in, and ends them when the cell ends, however
that is, so that no cell inherits what another left broken. They meet in a file of a temporary folder and talk over the
loopback interface: by gloo on CPUs, by NCCL on GPUs, of which each has one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from groupnorm.errors import GroupNormError, SingleElementError
from groupnorm.lab.common.processes import ending
from groupnorm.lab.training.loop import DivergedError, Training

_TIMEOUT = timedelta(hours=1)  # the others wait for process 0 while it measures
_GRACE = 30.0  # seconds that process 0 has to notice that another has ended, before it is ended too
_FOLLOW = 1.0  # seconds in which it shows whether another's end is behind an error of process 0


class ProcessError(GroupNormError, RuntimeError):
    """One of the processes that share the batches of a cell failed or was killed."""


@contextmanager
def data_parallel(run: Training, data_dir: Path | None) -> Iterator[None]:
    """Within it, a training shares its batches with the other processes that its cell asks for, if any.

    Args:
        run: in this process; the others begin where it stands.
        data_dir: where the datasets lie.

    Raises:
        ProcessError: another process failed or was killed.
        SingleElementError: as another process raised it.
        DivergedError: as another process raised it.
    """
    if run.cell.processes == 1:
        yield
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(run.state_dict(), folder / "state.pt")
        helpers = _Helpers(run, data_dir, folder)
        try:
            helpers.wait_until_ready()
            meet(run, 0, folder)
            yield
        except (SingleElementError, DivergedError):
            raise
        except Exception as error:
            cause = helpers.failure(_FOLLOW)
            if cause is None:
                raise
            raise cause from error
        finally:
            helpers.end()
            part()


def meet(run: Training, rank: int, folder: Path) -> None:
    """Wait for the other processes, and share the batches of a training with them from now on."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        "nccl" if run.device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=run.cell.processes,
        timeout=_TIMEOUT,
    )
    run.join(rank)


def part() -> None:
    """Leave the other processes, which may no longer be there."""
    if dist.is_initialized():
        if (group := dist.group.WORLD) is not None and dist.get_backend() == "nccl":
            group.abort()  # else it would wait for them
        dist.destroy_process_group()


class _Helpers:
    """The processes from 1 on, and a thread for each that sees it end."""

    def __init__(self, run: Training, data_dir: Path | None, folder: Path) -> None:
        self.folder, self.count = folder, run.cell.processes
        self.over = threading.Event()
        self.ended: list[tuple[int, int]] = []  # rank and exit code, the first to end first
        self.processes: list[subprocess.Popen[str]] = []
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # what this process can import, they can
        for rank in range(1, self.count):
            process = subprocess.Popen(
                [sys.executable, "-m", "groupnorm.lab.sweeps.ddp_worker"],
                stdin=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                text=True,
                bufsize=1,
            )
            self.processes.append(process)
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
            task = {
                "cell": run.cell.model_dump(),
                "data_dir": str(data_dir) if data_dir else None,
                "folder": str(folder),
                "rank": rank,
            }
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended already, which its thread sees
                process.stdin.write(json.dumps(task) + "\n")

    def wait_until_ready(self) -> None:
        """Wait until all have loaded their data and built their network."""
        while not all((self.folder / f"{rank}.ready").exists() for rank in range(1, self.count)):
            if failure := self.failure(0.05):
                raise failure

    def failure(self, seconds: float) -> Exception | None:
        """Why the first of them ended, if one does within this time."""
        until = time.monotonic() + seconds
        while not self.ended and time.monotonic() < until:
            time.sleep(0.01)
        if not self.ended:
            return None
        rank, code = self.ended[0]
        left = self.folder / f"{rank}.failed"
        if not left.exists():
            return ProcessError(f"process {rank} of {self.count} {ending(code)}")
        kind, message = json.loads(left.read_text())
        for known in (SingleElementError, DivergedError):
            if kind == known.__name__:
                return known(message)
        return ProcessError(f"process {rank} of {self.count} failed: {kind}: {message}")

    def end(self) -> None:
        """End them, whatever they are doing."""
        self.over.set()
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def _watch(self, rank: int, process: subprocess.Popen[str]) -> None:
        """See it end. A GPU would wait for it without end: then this process ends too, and the sweep reports that."""
        code = process.wait()
        self.ended.append((rank, code))
        if not self.over.wait(_GRACE):
            print(f"process {rank} of {self.count} {ending(code)}, and process 0 waits for it", flush=True)
            os._exit(1)
