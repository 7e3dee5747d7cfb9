"""Every experiment runs at smoke, and starts at full on a handful of made-up images."""

import gzip
import pickle
import struct
from dataclasses import replace

import joblib
import numpy as np
import pytest
from PIL import Image

from groupnorm.errors import UnknownNameError
from groupnorm.lab.experiments import EXPERIMENTS
from groupnorm.lab.experiments.framework.claim import judge
from groupnorm.lab.experiments.framework.evidence import FILE, load
from groupnorm.lab.experiments.framework.experiment import SCALES
from groupnorm.lab.experiments.runner import run
from lab.inline import inline

NAMES = list(EXPERIMENTS)
FULL = {"batch_sizes": 10, "normalization_batches": 2, "epochs": 1, "seeds": 1, "processes": 1}
"""What keeps the full scale from taking weeks; data, model, augmentation, schedule and task stay."""


@pytest.fixture(scope="module")
def full_data(tmp_path_factory):
    """ImageNet, CIFAR-10, Fashion-MNIST, PneumoniaMNIST, California housing in their own forms: few examples."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for label in ("n01440764", "n01443537"):
            for i in range(count):
                path = folder / "imagenet" / split / label / f"{label}_{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (80, 70, 3), dtype=np.uint8)).save(path)
    (folder / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (40, 3072), dtype=np.uint8)
        content = {b"data": pixels, b"labels": 4 * list(range(10))}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content))
    (folder / "FashionMNIST" / "raw").mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 20)):
        for part, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            values = random.integers(0, 256, shape) if len(shape) > 1 else np.arange(count) % 10
            head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            path = folder / "FashionMNIST" / "raw" / f"{name}-{part}-ubyte.gz"
            path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))
    rays = {
        f"{split}_{part}": random.integers(0, top, (64, *shape), dtype=np.uint8)
        for split in ("train", "val", "test")
        for part, top, shape in (("images", 256, (28, 28)), ("labels", 2, (1,)))
    }
    np.savez(folder / "pneumoniamnist.npz", **rays)
    joblib.dump(random.random((40, 9)), folder / "cal_housing_py3.pkz")
    return folder


@pytest.fixture(autouse=True)
def where(full_data, monkeypatch):
    monkeypatch.setenv("GROUPNORM_DATA_DIR", str(full_data))
    with inline():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_its_head_tells_command_and_time_and_result_at_each_scale(name):
    experiment = EXPERIMENTS[name]
    assert f"``groupnorm run {name} --scale small``" in experiment.head
    for scale in SCALES:
        time, result = experiment.expected(scale)
        assert time
        assert result.endswith(".")
    assert "to be measured" not in experiment.head


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_at_smoke_and_draws_and_judges_what_it_found(name, tmp_path):
    evidence = run(name, "smoke", out=tmp_path, progress=False)
    status = evidence.table["status"]
    assert set(status) <= {"finished", "undefined", "diverged"}, list(evidence.table["reason"])
    assert (status == "finished").mean() > 0.5
    assert load(tmp_path / FILE).head == evidence.head
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    for claim in EXPERIMENTS[name].claims:
        judge(claim, name, evidence)
    before = (tmp_path / FILE).read_bytes()
    run(name, "smoke", out=tmp_path, progress=False)
    assert (tmp_path / FILE).read_bytes() == before, "a finished run trains nothing again"


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_at_full(name, tmp_path, monkeypatch):
    """One cell of each kind: data, model, task and its options."""
    experiment = EXPERIMENTS[name]
    kinds = {}
    for arm, parts in experiment.full.arms.items():
        for part in parts:
            kinds.setdefault(tuple(part.get(key) for key in ("dataset", "model", "task")), (arm, part))
    few = replace(
        experiment,
        full=replace(
            experiment.full, arms={arm: [{**part, "norms": part["norms"][-1:]}] for arm, part in kinds.values()}
        ),
    )
    monkeypatch.setitem(EXPERIMENTS, name, few)
    imagenet = any(part["dataset"] == "imagenet" for _, part in kinds.values())
    smaller = {"image_size": 64} if imagenet else {}
    if name != "non-iid":  # whose 5 workers take 20 steps between two averages
        smaller |= {"batch_sizes": 4, "limit_train": 8, "limit_val": 4}
    evidence = run(name, "full", out=tmp_path, progress=False, **(FULL | smaller))
    assert set(evidence.table["status"]) <= {"finished", "diverged"}, list(evidence.table["reason"])
    assert set(evidence.table["arm"]) == {arm for arm, _ in kinds.values()}


def test_each_claim_has_a_name_of_its_own_and_all_that_the_ledger_tells():
    claims = [claim for experiment in EXPERIMENTS.values() for claim in experiment.claims]
    assert len({claim.id for claim in claims}) == len(claims) >= 25
    for claim in claims:
        assert claim.statement.endswith(".")
        assert claim.source
        assert claim.published
        assert claim.refuted
        for effect in claim.effects:
            assert (effect.above, effect.below) != (None, None)


def test_an_unknown_experiment_or_scale_is_an_error(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown experiment 'vvg'.*vgg"):
        run("vvg", out=tmp_path)
    with pytest.raises(UnknownNameError, match=r"unknown scale 'large'.*smoke, small, full"):
        run("vgg", "large", out=tmp_path)
