"""Sweeps: parallel, interruptible at any moment, and the same bit for bit however often they were interrupted."""

import json
import os
import signal
import subprocess
import sys

import pytest

from groupnorm.lab import compare, load
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.sweeps.local import bundles, unfinished
from groupnorm.lab.sweeps.worker import run_cells
from groupnorm.lab.training.seed_stacking import SEEDS
from lab.fault_injection import epochs_recorded, facts, wait_until, workers_of

SMALL = ["--limit-train", "160", "--limit-val", "50", "--epochs", "3", "--seeds", "2"]
SWEEP = ["--norms", "bn,gn,in", "--batch-sizes", "16,4", *SMALL]


def groupnorm(*arguments, **options):
    command = [sys.executable, "-m", "groupnorm.cli", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        **options,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    process = groupnorm("compare", *SWEEP, "--out", folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return folder, output


def test_every_cell_ends_with_a_result(unbroken):
    folder, output = unbroken
    table = load(folder).table
    assert len(table) == 3 * 2 * 2
    assert set(table[table.norm == "in"].status) == {"undefined"}
    assert table[table.norm == "in"].reason.str.contains("1 element per group").all()
    assert set(table[table.norm != "in"].status) == {"finished"}
    assert table[table.norm != "in"].error.between(0, 100).all()
    assert "report.html" in output.splitlines()[-1]
    assert not list(folder.glob("cells/*/checkpoint.pt"))


def cell(**changes):
    fields = {
        "dataset": "digits", "data_digest": "0", "model": "resnet-tiny", "norm": "gn", "batch_size": 16,
        "normalization_batch": None, "seed": 0, "epochs": 2, "learning_rate": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "limit_train": 96, "limit_val": 40, "image_size": None, "device": "cpu",
        "precision": "fp32", "threads": 1,
    }  # fmt: skip
    return Cell(**{**fields, **changes})


def test_cells_with_a_result_are_not_handed_out_and_not_trained_again(tmp_path):
    run, five = RunFolder(tmp_path), [cell(seed=seed) for seed in range(5)]
    for one, status in zip(five, ("finished", "diverged", "undefined", "crashed"), strict=False):
        run.cell(one.id).append({"kind": "end", "status": status, "reason": ""})
    cells = {one.id: one for one in five}
    assert unfinished(cells, {name: run.cell(name).records() for name in cells}, run) == five[3:]
    run_cells(five[:3], run, lambda: pytest.fail("trained again"), lambda *event: None)
    assert all(len(run.cell(one.id).records()) == 1 for one in five[:3])


def test_a_bundle_holds_the_seeds_of_one_configuration():
    cells = [cell(norm=norm, seed=seed) for seed in range(3) for norm in ("bn", "gn")]
    found = bundles(cells, workers=2)
    assert [{c.norm for c in bundle} for bundle in found] == [{"bn"}, {"gn"}]
    assert [[c.seed for c in bundle] for bundle in found] == [[0, 1, 2]] * 2
    assert [len(bundle) for bundle in bundles([c.model_copy(update={"device": "cuda"}) for c in cells], 1)] == [1] * 6


@pytest.mark.parametrize(
    ("workers", "sizes"), [(1, [5, 1]), (2, [5, 1]), (3, [3, 2, 1]), (4, [2, 1, 2, 1]), (9, [1] * 6)]
)
def test_bundles_are_split_until_no_worker_is_idle(workers, sizes):
    cells = [*(cell(seed=seed) for seed in range(5)), cell(norm="bn")]
    found = bundles(cells, workers)
    assert [len(bundle) for bundle in found] == sizes
    assert [c for bundle in found for c in bundle] == cells


def test_a_bundle_is_no_larger_than_what_is_trained_together():
    found = bundles([cell(seed=seed) for seed in range(2 * SEEDS + 3)], workers=2)
    assert [len(bundle) for bundle in found] == [SEEDS, SEEDS, 3]


def test_a_long_sweep_begins_with_small_bundles():
    """So that its first result comes as early as that of a short one; it came after 40 seconds."""
    cells = [cell(norm=norm, seed=seed) for norm in ("bn", "gn") for seed in range(200)]
    sizes = [len(bundle) for bundle in bundles(cells, workers=2)]
    assert sizes == [1, 2, 4, 8, *[SEEDS] * 11, 9, *[SEEDS] * 12, 8]


def test_a_worker_starts_without_the_compiler():
    """Its import takes more than a second, and every result waits for it."""
    code = (
        "import sys, torch; from groupnorm.lab.sweeps.worker import make_deterministic; make_deterministic(); "
        "print(torch.get_deterministic_debug_mode(), 'torch._inductor.config' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["1", "False"]


def test_each_cell_carries_its_environment(unbroken):
    folder, _ = unbroken
    for records in facts(folder).values():
        start = records[0]
        assert start["kind"] == "start"
        assert start["cell"]["data_digest"]
        assert start["environment"]["torch"]
        assert start["environment"]["data"] == start["cell"]["data_digest"]
        assert "revision" in start["environment"]


def test_killed_workers_are_recorded_and_tried_again(unbroken, tmp_path):
    process = groupnorm("compare", *SWEEP, "--out", tmp_path)
    wait_until(lambda: epochs_recorded(tmp_path) >= 1)
    os.kill(workers_of(tmp_path)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    table = load(tmp_path).table
    crashed = table[table.status == "crashed"]
    assert 1 <= len(crashed) <= 2, "what one worker had at hand: the seeds of one norm and batch size"
    assert len(crashed[["norm", "batch_size"]].drop_duplicates()) == 1
    assert crashed.reason.str.contains("killed by SIGKILL").all()
    named = crashed.reason.str.extract(r"see (cells/.*/log\.txt)")[0]
    assert named.map(lambda log: (tmp_path / log).exists()).all()
    assert "killed by SIGKILL" in output
    assert (table.status != "pending").all(), "the sweep goes on without the killed worker"
    process = groupnorm("compare", *SWEEP, "--out", tmp_path)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert facts(tmp_path) == facts(unbroken[0])


def test_interrupt_says_how_to_go_on(tmp_path):
    process = groupnorm("compare", *SWEEP, "--epochs", 200, "--out", tmp_path)
    wait_until(lambda: epochs_recorded(tmp_path) >= 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in output
    wait_until(lambda: not workers_of(tmp_path))
    assert {"finished", "running", "pending", "undefined"} >= set(load(tmp_path).table.status)


def test_a_changed_environment_begins_unfinished_cells_anew(unbroken, tmp_path):
    process = groupnorm("compare", *SWEEP, "--out", tmp_path)
    wait_until(lambda: list(tmp_path.glob("cells/*/checkpoint.pt")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not workers_of(tmp_path))
    for path in tmp_path.glob("cells/*/records.jsonl"):
        first, *rest = path.read_text().splitlines(keepends=True)
        start = json.loads(first)
        if not any('"kind": "end"' in line for line in rest):
            start["environment"]["torch"] = "0.0"
            path.write_text(json.dumps(start) + "\n" + "".join(rest))
    process = groupnorm("compare", *SWEEP, "--out", tmp_path)
    process.communicate(timeout=240)
    assert facts(tmp_path) == facts(unbroken[0])


def test_three_lines_of_python_give_a_table_and_a_plot(tmp_path):
    options = {"limit_train": 64, "limit_val": 20, "epochs": 1, "seeds": 1, "progress": False}
    result = compare(norms=["gn"], batch_sizes=[32], out=tmp_path, **options)
    assert list(result.table.columns[:2]) == ["norm", "batch_size"]
    assert {"norm", "batch_size", "seed", "error", "train_error", "status"} <= set(result.table.columns)
    assert result.table.error.between(0, 100).all()
    assert result.plot().axes
    again = load(tmp_path)
    assert again.table.equals(result.table)
