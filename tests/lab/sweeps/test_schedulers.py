"""Clusters: the same records wherever a cell is trained, and nothing is lost when a worker dies."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

import groupnorm.lab
from groupnorm.errors import GroupNormError
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.sweeps import ray, slurm
from groupnorm.lab.sweeps.configuration import Comparison, ConfigurationError, plan
from lab.synthetic import TIMING

LOOPBACK = "127.0.0.2"  # Ray resolves 127.0.0.1 to the address of another interface
SWEEP = {"norms": "gn,bn", "batch_sizes": 8, "seeds": 2, "epochs": 3, "limit_train": 96, "limit_val": 40}
RAY = os.path.join(os.path.dirname(sys.executable), "ray")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


def records(folder):
    """All records of all cells without the times."""
    cells = sorted((folder / "cells").iterdir())
    found = {cell.name: RunFolder(folder).cell(cell.name).records() for cell in cells}
    return {name: [{k: v for k, v in one.items() if k not in TIMING} for one in all_] for name, all_ in found.items()}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    groupnorm.lab.compare(out=folder, progress=False, workers=1, **SWEEP)
    return records(folder)


class Cluster(NamedTuple):
    """Of Ray: its address, and the session that all its processes are in."""

    address: str
    session: int


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two cores on the loopback interface."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    options = ["--head", "--num-cpus=2", f"--node-ip-address={LOOPBACK}", f"--port={port}"]
    options += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={tmp_path_factory.mktemp('ray')}"]
    head = subprocess.Popen(
        [RAY, "start", "--block", *options],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    output = ""
    while "Ray runtime started" not in output:
        line = head.stdout.readline()
        assert line, output
        output += line
    yield Cluster(f"{LOOPBACK}:{port}", head.pid)
    for pid, _ in processes(head.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait()
    head.stdout.close()


def processes(session):
    """Process id and command of all processes of a session."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "pid=,args="], capture_output=True, text=True).stdout
    return [(int(line.split()[0]), line.partition(" ")[2]) for line in map(str.strip, listed.splitlines())]


def busy_workers(session):
    """Process ids of the Ray workers that train."""
    return [pid for pid, command in processes(session) if "ray::train" in command]


def test_without_a_ray_cluster_the_sweep_is_refused(tmp_path):  # comes first: no cluster is up yet
    with pytest.raises(GroupNormError, match=r"no Ray cluster answers at auto.*ray start --head"):
        groupnorm.lab.compare(out=tmp_path, progress=False, scheduler="ray", **SWEEP)


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path):
    with pytest.raises(GroupNormError, match=r"no Ray cluster answers at 127\.0\.0\.1:9: .*refused"):
        groupnorm.lab.compare(out=tmp_path, progress=False, scheduler="ray", address="127.0.0.1:9", **SWEEP)


def test_ray_gives_the_records_that_this_machine_gives(cluster, local, tmp_path):
    groupnorm.lab.compare(out=tmp_path, progress=False, scheduler="ray", address=cluster.address, **SWEEP)
    assert records(tmp_path) == local


def test_a_ray_worker_that_is_killed_loses_nothing(cluster, local, tmp_path):
    command = [sys.executable, "-m", "groupnorm.cli", "compare", "--scheduler", "ray", "--address", cluster.address]
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SWEEP.items()]
    process = subprocess.Popen([*command, *options, "--out", str(tmp_path)], stdout=subprocess.DEVNULL)
    killed = []
    while process.poll() is None and len(killed) < 2:
        begun = any(path.read_text().count('"epoch"') for path in tmp_path.glob("cells/*/records.jsonl"))
        for pid in busy_workers(cluster.session) if begun else ():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.05)
    assert process.wait(timeout=120) == 0
    assert killed
    assert records(tmp_path) == local


def test_ray_goes_on_from_the_last_epoch_that_arrived(cluster, tmp_path):
    comparison, dataset = plan(**SWEEP)
    run, chosen = RunFolder(tmp_path), comparison.cells(dataset.digest)[:1]
    first = ray.sweep(chosen, run, 1, None, cluster.address)
    assert next(event["epoch"] for event in first if event["kind"] == "epoch") == 1
    first.close()
    told = list(ray.sweep(chosen, run, 1, None, cluster.address))
    assert [event["epoch"] for event in told if event["kind"] == "epoch"] == [2, 3]


def test_slurm_jobs_give_the_records_that_this_machine_gives(local, tmp_path):
    """submitit's own local executor stands for Slurm: the same job files, processes of this machine."""
    comparison, dataset = plan(**SWEEP)
    run = RunFolder(tmp_path)
    cells = comparison.cells(dataset.digest)
    events = list(slurm.sweep(cells, run, 2, None, {"timeout_min": "5"}, cluster="local"))
    assert records(tmp_path) == local
    assert [event["kind"] for event in events if event["cell"] == cells[0].id] == ["begin", *3 * ["epoch"], "end"]


def test_a_slurm_job_that_dies_is_a_crash_and_the_next_sweep_goes_on(local, tmp_path):
    comparison, dataset = plan(**SWEEP)
    run, cells = RunFolder(tmp_path), comparison.cells(dataset.digest)[:1]
    for event in slurm.sweep(cells, run, 1, None, {}, cluster="local"):
        if event["kind"] == "epoch":
            listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
            for line in listed.splitlines():
                if "submitit.core._submit" in line and str(tmp_path) in line:
                    os.kill(int(line.split()[0]), signal.SIGKILL)
    assert event["kind"] == "end"
    assert event["status"] in ("crashed", "finished")  # the last epoch may have been on the disk already
    list(slurm.sweep(cells, run, 1, None, {}, cluster="local"))
    name = cells[0].id
    assert records(tmp_path)[name] == local[name]


def test_without_slurm_the_sweep_is_refused(tmp_path):
    with pytest.raises(GroupNormError, match=r"the jobs cannot be submitted.*sbatch"):
        groupnorm.lab.compare(out=tmp_path, progress=False, scheduler="slurm", **SWEEP)


def test_parameters_of_slurm_are_read_from_the_command_line():
    assert Comparison(slurm="slurm_partition=gpu,mem_gb=16").slurm == {"slurm_partition": "gpu", "mem_gb": "16"}
    with pytest.raises(ConfigurationError, match="gpu has no value; expected name=value"):
        plan(slurm="gpu")


def test_a_scheduler_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"'ray' needs ray, which is not installed.*groupnorm\[cluster\]"):
        plan(scheduler="ray")
