"""Norms, tasks, regimes, optimisers and augmentations of the user's own, through compare and its report."""

import json
import sys

import pytest
from matplotlib.collections import LineCollection
from torch import nn

from groupnorm.lab import ConfigurationError, compare
from groupnorm.lab.sweeps.configuration import Comparison
from lab.inline import inline

PLUGINS = '''
import torch
from torch import nn
from groupnorm.lab.common.metric import Metric
from groupnorm.lab.data.augmentation import Augmentation
from groupnorm.lab.tasks.classification import Classification
from groupnorm.lab.training.loop import Training
from groupnorm.sets import group_set


class Halves(nn.GroupNorm):
    shared_sets = group_set(2)

    def __init__(self, channels, eps=1e-5, affine=True):
        super().__init__(2, channels, eps, affine)


class Accuracy(Classification):
    """Classification, scored by the share of right answers."""

    name = "accuracy"
    metric = Metric("accuracy", "accuracy", "%", 0.0, 100.0, higher_is_better=True)

    def score(self, tally, samples, data):
        return 100 - 100 * tally / samples

    def chance(self, data):
        return 100 / data.outputs


class Clips(Classification):
    """Classification of what is called a clip."""

    name = "clips"
    sample = "clip"


class Negative(Classification):
    """A metric without a bound, below zero."""

    name = "negative"
    metric = Metric("score", "score", low=None, higher_is_better=True)

    def score(self, tally, samples, data):
        return -100 * tally / samples

    def chance(self, data):
        return -100.0


class Backwards(Training):
    """The samples in falling order."""

    options = frozenset({"start"})

    def order(self):
        return torch.arange(len(self.dataset.train_targets)).flip(0)


def adagrad(parameters):
    return torch.optim.Adagrad(parameters)


def mirrored():
    return Augmentation("mirrored", 0, lambda images, numbers: images.flip(-1))


def number():
    return 3
'''
QUICK = {
    "batch_sizes": [32],
    "seeds": 1,
    "epochs": 1,
    "limit_train": 128,
    "limit_val": 64,
    "learning_rate": 0.01,
    "progress": False,
}


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "own_plugins.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_plugins", raising=False)
    import own_plugins

    yield own_plugins
    monkeypatch.delitem(sys.modules, "own_plugins", raising=False)


def trained(tmp_path, **options):
    with inline():
        result = compare(**{"norms": ["gn"]} | QUICK | options, out=tmp_path / "run")
    assert set(result.table.status) == {"finished"}, list(result.table.reason)
    return result


def test_a_norm_has_its_row_its_cube_and_its_identity(plugins, tmp_path):
    result = trained(tmp_path, norms=["gn", "own_plugins:Halves"])
    assert list(result.table.norm) == ["gn", "own_plugins:Halves"]
    page = result.report().read_text()
    assert ">Halves<" in page
    assert page.count("<article") == 2, "a card with its cube for each"
    first, second = result.cells
    assert first.model_digest is None
    assert second.model_digest is not None, "the code behind the name is part of the identity"


def test_a_norm_as_a_class(plugins, tmp_path):
    assert Comparison(norms=[plugins.Halves, "gn"]).norms == ("own_plugins:Halves", "gn")
    trained(tmp_path, norms=plugins.Halves)

    class Local(nn.Identity):
        pass

    with pytest.raises(ConfigurationError, match=r"norms: .*cannot be imported"):
        compare(norms=[Local], out=tmp_path / "other", progress=False)


def test_another_norm_under_the_same_name_is_another_trial(plugins, tmp_path, monkeypatch):
    before = trained(tmp_path, norms="own_plugins:Halves").cells[0].id
    from groupnorm.nn.own import own_row

    file = tmp_path / "plugins" / "own_plugins.py"
    file.write_text(PLUGINS.replace("super().__init__(2, channels", "super().__init__(4, channels"))
    monkeypatch.delitem(sys.modules, "own_plugins")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own_row.cache_clear()
    for cached in (tmp_path / "plugins" / "__pycache__").glob("*"):
        cached.unlink()
    assert trained(tmp_path, norms="own_plugins:Halves").cells[0].id != before


def test_a_task_with_a_metric_of_which_more_is_better(plugins, tmp_path):
    result = trained(tmp_path, task="own_plugins:Accuracy", norms=["gn", "bn"], epochs=3)
    table = result.table
    assert (table.best_accuracy >= table.accuracy).all()
    assert table.accuracy.between(0, 100).all()
    page = result.report().read_text()
    assert "Validation accuracy over batch size" in page
    assert json.loads((tmp_path / "run" / "run.json").read_text())["task"]["metric"]["higher_is_better"]


def test_intervals_of_a_metric_without_a_bound_are_drawn_below_zero(plugins, tmp_path):
    result = trained(tmp_path, task="own_plugins:Negative", seeds=2)
    (bars,) = [found for found in result.plot().axes[1].collections if isinstance(found, LineCollection)]
    low, high = sorted(point[1] for point in bars.get_segments()[0])
    assert [low, high] == pytest.approx([result.summary.score_low[0], result.summary.score_high[0]])
    assert low < 0


def test_a_task_with_samples_of_another_name(plugins, tmp_path):
    result = trained(tmp_path, task="own_plugins:Clips")
    assert result.table.clips_per_second.gt(0).all()
    assert "Training clips per second" in result.report().read_text()
    with inline():
        again = compare(**{"norms": ["gn"]} | QUICK, task="own_plugins:Clips", out=tmp_path / "run")
    assert again.table.equals(result.table)


def test_a_regime(plugins, tmp_path):
    usual = trained(tmp_path).table.loss
    backwards = trained(tmp_path, regime="own_plugins:Backwards").table.loss
    assert list(backwards) != list(usual)
    with pytest.raises(ConfigurationError, match="regime: it takes no option begin; expected of start"):
        compare(regime="own_plugins:Backwards", options={"begin": 1}, out=tmp_path / "run", progress=False)
    with pytest.raises(ConfigurationError, match="'Backwards' is made for one process, and processes is 2"):
        compare(regime="own_plugins:Backwards", processes=2, out=tmp_path / "run", progress=False)


def test_an_optimizer(plugins, tmp_path):
    losses = [trained(tmp_path, optimizer=name).table.loss[0] for name in ("sgd", "adamw", "own_plugins:adagrad")]
    assert len(set(losses)) == 3
    assert len({cell for name in ("sgd", "adamw") for cell in trained(tmp_path, optimizer=name).table.cell}) == 2
    with pytest.raises(ConfigurationError, match="optimizer: unknown optimizer 'adam'; expected one of: sgd, adamw"):
        compare(optimizer="adam", out=tmp_path / "run", progress=False)
    with inline():
        table = compare(optimizer="own_plugins:number", norms="gn", out=tmp_path / "run", **QUICK).table
    assert table.status[0] == "crashed"


def test_an_augmentation(plugins, tmp_path):
    usual = trained(tmp_path).table.cell
    assert set(trained(tmp_path, augment="own_plugins:mirrored").table.cell).isdisjoint(usual)
    with pytest.raises(ConfigurationError, match="returned int; expected an Augmentation"):
        compare(augment="own_plugins:number", out=tmp_path / "run", progress=False)


@pytest.mark.parametrize("regime", ["adversarial", "federated", "few-classes"])
def test_the_regimes_of_the_package_run_by_their_names(regime, tmp_path):
    options = {"normalization_batches": 16} if regime == "federated" else {}
    options |= {"options": {"images": 16, "steps": 2, "white": 16}} if regime == "adversarial" else {}
    trained(tmp_path, regime=regime, **options)


def test_options_of_the_command_line_are_json():
    found = Comparison(regime="adversarial", options="white=16,steps=3").options
    assert found == {"white": 16, "steps": 3}
