"""A sweep on a Ray cluster. Nothing but Ray connects the machines: records and checkpoints travel as messages.

Each task trains a bundle of cells in a folder of its own on its machine, and sends what is new in it back after every
epoch. The driver writes that into the run folder. When a machine or a worker dies, its bundle goes on elsewhere from
the last epoch that arrived. https://docs.ray.io/en/latest/ray-core/.
"""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from groupnorm.errors import GroupNormError
from groupnorm.lab.common.store import Files, Record, RunFolder
from groupnorm.lab.common.text import readable
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.sweeps.local import Event, bundles, status
from groupnorm.lab.sweeps.worker import run_bundle

_SECONDS_TO_ANSWER = 10.0

ATTEMPTS = 3
"""How often a bundle is given out again after its worker died, before its cells count as crashed."""

Message = tuple[Event, Files]
"""An event, and the files of its cell as they are after it; no files while nothing new is on the disk."""


def sweep(
    cells: Sequence[Cell], run: RunFolder, workers: int | None, data_dir: Path | None, address: str | None
) -> Generator[Event, None, None]:
    """Train the cells on the cluster and yield events as they happen.

    Raises:
        GroupNormError: there is no cluster at the address.
    """
    import ray

    try:
        _knock(address)
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR, **_own_address(address))
    except (OSError, RuntimeError, ValueError) as error:
        raise GroupNormError(
            f"no Ray cluster answers at {address or 'auto'}: {error}; expected the address that `ray start --head` "
            f"printed, or none on a machine of the cluster"
        ) from error
    try:
        yield from _sweep(cells, run, workers, data_dir)
    finally:
        ray.shutdown()


def _sweep(
    cells: Sequence[Cell], run: RunFolder, workers: int | None, data_dir: Path | None
) -> Generator[Event, None, None]:
    import ray

    left = bundles(cells, workers or _cpus())
    attempts: dict[str, int] = {}
    running: dict[Any, list[Cell]] = {}  # the cells of each task, by its stream of messages
    while left or running:
        while left and (workers is None or len(running) < workers):
            bundle = left.pop(0)
            running[_start(bundle, run, data_dir)] = bundle
            yield from ({"kind": "begin", "cell": cell.id} for cell in bundle)
        stream = _first(list(running))
        try:
            event, files = ray.get(next(stream))
        except StopIteration:
            del running[stream]
        except ray.exceptions.RayError as error:
            bundle = running.pop(stream)
            unfinished = [cell for cell in bundle if status(run.cell(cell.id).records()) == "pending"]
            tried = attempts[bundle[0].id] = attempts.get(bundle[0].id, 0) + 1
            if unfinished and tried < ATTEMPTS:
                attempts[unfinished[0].id] = tried
                left.insert(0, unfinished)
                continue
            for cell in unfinished:
                reason = readable(f"its worker died {tried} times, at last: {str(error).splitlines()[0]}")
                end = {"kind": "end", "status": "crashed", "reason": reason}
                run.cell(cell.id).append(end)
                yield {"cell": cell.id, **end}
        else:
            if files:
                run.cell(event["cell"]).unpack(files)
            yield event


def _first(streams: list[Any]) -> Any:
    """Whichever tells something first."""
    import ray

    (ready,), _ = ray.wait(streams, num_returns=1)
    return ready


def _start(bundle: list[Cell], run: RunFolder, data_dir: Path | None) -> Any:
    """The stream of messages of a task that trains the bundle from where it stands."""
    import ray

    first = bundle[0]
    shape = {
        "num_cpus": first.threads * first.processes,
        "num_gpus": first.processes * (first.device == "cuda"),
    }
    remote: Any = ray.remote(max_retries=0, **shape)(train)  # type: ignore[call-overload]
    files = {cell.id: run.cell(cell.id).pack() for cell in bundle}
    return remote.remote([cell.model_dump() for cell in bundle], files, str(data_dir) if data_dir else None)


def train(fields: list[dict[str, Any]], files: dict[str, Files], data_dir: str | None) -> Iterator[Message]:
    """What runs on the cluster: train a bundle of cells, and tell each event with the files as they are then.

    Args:
        fields: the cells.
        files: what the run folder holds of each cell, by its id.
        data_dir: where the datasets lie.
    """
    cells = [Cell(**one) for one in fields]
    messages: SimpleQueue[Message | None] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        for cell in cells:
            run.cell(cell.id).unpack(files[cell.id])

        def emit(cell_id: str, record: Record) -> None:
            news = record["kind"] != "progress"
            messages.put(({"cell": cell_id, **record}, run.cell(cell_id).pack() if news else {}))

        def work() -> None:
            try:
                run_bundle(cells, run, Path(data_dir) if data_dir else None, emit)
            finally:
                messages.put(None)

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            while (message := messages.get()) is not None:
                yield message
            done.result()  # raises what ended it, so that the driver gives the bundle out again


def _knock(address: str | None) -> None:
    """Raise OSError unless somebody listens at ``host:port``: Ray itself would knock for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


def _own_address(address: str | None) -> dict[str, Any]:
    """On a cluster of the loopback interface alone, this process has its address there too."""
    host = (address or "").rpartition(":")[0]
    return {"_node_ip_address": host} if host.startswith("127.") else {}


def _cpus() -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 1))
