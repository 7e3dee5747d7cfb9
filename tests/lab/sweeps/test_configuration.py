"""The configuration is validated as a whole, before anything trains."""

import inspect
import pickle
import shlex
import sys
from pathlib import Path

import pytest
import torch

from groupnorm.lab.api import compare, default_folder
from groupnorm.lab.sweeps.configuration import Comparison, ConfigurationError, plan
from groupnorm.nn import replacements

QUICK = {"limit_train": 64, "limit_val": 20}


def problems(**options):
    with pytest.raises(ConfigurationError) as caught:
        plan(**{**QUICK, **options})
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    return caught.value.problems


@pytest.mark.parametrize("norms", ["all", ["all"]])
def test_all_is_every_norm_that_replaces_batch_norm(norms):
    chosen = Comparison(norms=norms).norms
    assert chosen == tuple(replacements())
    assert {"bn", "gn", "brn", "bcn", "cbn", "ws+gn", "ws+bn"} <= set(chosen)
    assert not {"none", "lrn", "ws", "syncbn"} & set(chosen)


def test_all_problems_are_reported_at_once():
    found = problems(
        norms="bn,gm,xx", model="resnet-tin", dataset="digitz", batch_sizes="32,0", seeds=0, learning_rate=-1,
        precision="fp8", nonsense=1,
    )  # fmt: skip
    text = "\n".join(found)
    for part in (
        "norms: unknown norm 'gm'", "did you mean 'gn'", "unknown norm 'xx'", "model: unknown model 'resnet-tin'",
        "did you mean 'resnet-tiny'", "dataset: unknown dataset 'digitz'", "did you mean 'digits'",
        "batch_sizes.1: Input should be greater than 0; got '0'", "seeds: ", "learning_rate: ", "precision: ",
        "unknown option 'nonsense'",
    ):  # fmt: skip
        assert part in text


def test_an_element_that_is_wrong_is_the_only_problem_reported():
    assert problems(batch_sizes=0) == ["batch_sizes.0: Input should be greater than 0; got 0"]


def test_the_default_batch_sizes_are_held_against_the_data_too():
    with pytest.raises(ConfigurationError, match="32 is more than the 20 training images"):
        plan(limit_train=20, limit_val=8)


@pytest.mark.parametrize("option", ["batch_size", "norm", "epoch"])
def test_an_unknown_option_names_the_nearest(option):
    (found,) = problems(**{option: 1})
    assert "did you mean" in found


def test_a_batch_larger_than_the_training_set_names_both():
    assert problems(batch_sizes="65,32") == ["batch_sizes: 65 is more than the 64 training images; expected at most 64"]


def test_a_normalization_batch_divides_every_batch_size():
    found = problems(batch_sizes="32,4", normalization_batches="8")
    assert found == ["normalization_batches: normalization batch 8 does not divide batch size 4; use one of [1, 2, 4]"]


def test_only_one_of_two_batches_varies():
    (found,) = problems(batch_sizes="32,16", normalization_batches="8,4")
    assert "expected one of the two to vary" in found


def test_a_value_given_twice_is_refused():
    (found,) = problems(norms="bn,gn,bn")
    assert "names a value twice" in found


def test_a_network_too_deep_for_the_images_is_refused_with_its_own_words():
    found = problems(model="vgg16", norms="gn")
    assert len(found) == 1
    assert "'vgg16' with norm 'gn' cannot take images of shape (1, 8, 8)" in found[0]


def test_groups_that_do_not_divide_the_channels_are_refused():
    (found,) = problems(norms="gn:3")
    assert "num_channels=16 cannot be divided by num_groups=3" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused():
    (found,) = problems(device="cuda")
    assert "not available" in found


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(norm_layer): return 7", "returned int; expected factory(norm_layer)"),
        ("import torch\ndef make(norm_layer): return torch.nn.Identity()", "its output is (2, 1, 8, 8)"),
        ("def make(norm_layer): raise KeyError('mine')", "mine"),
        ("def make(norm_layer): assert False", "cannot take images of shape (1, 8, 8): AssertionError"),
        ("raise RuntimeError('at import')", "cannot be imported: RuntimeError: at import"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("import sys\ndef make(norm_layer): sys.exit(0)", "cannot take images of shape (1, 8, 8): 0"),
        ("make = 7", "is of type int; expected a function or class"),
        ("", "has no attribute 'make'"),
    ],
)
def test_a_model_of_the_users_own_that_cannot_work_is_refused(tmp_path, monkeypatch, body, message):
    (tmp_path / "own_model.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    (found,) = problems(model="own_model:make", norms="gn")
    assert message in found


def test_a_model_of_the_running_script_is_refused():
    (found,) = problems(model="__main__:make")
    assert "put it into a file of its own" in found


def test_a_module_that_compares_while_it_is_imported_is_refused(tmp_path, monkeypatch):
    (tmp_path / "comparing.py").write_text(
        "import groupnorm.lab\ngroupnorm.lab.compare(model='comparing:make')\ndef make(norm_layer): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from groupnorm.lab import compare

    with pytest.raises(ConfigurationError, match="put the call under `if __name__ == '__main__':`"):
        compare(model="comparing:make", out=tmp_path / "run", **QUICK)


def test_a_model_of_the_users_own_is_built_with_the_norm(tmp_path, monkeypatch):
    (tmp_path / "good_model.py").write_text(
        "from torch import nn\n"
        "def make(norm_layer):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), norm_layer(8), nn.Flatten(), nn.Linear(288, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    comparison, dataset = plan(model="good_model:make", norms="gn,bn", batch_sizes=8, **QUICK)
    assert len(comparison.cells(dataset.digest)) == 2 * 3


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("digits", "digits"),
        ("folder:/data/pets/", "pets"),
        ("mine:data", "data"),
        (r"C:\data\pets", "pets"),
        ("C:/pets\\", "pets"),
    ],
)
def test_the_folder_of_a_run_has_the_last_part_of_the_names(dataset, folder):
    assert default_folder(Comparison(dataset=dataset)) == Path("runs") / f"{folder}-resnet-tiny"


def test_planning_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    plan(norms="gn", **QUICK)
    assert torch.equal(before, torch.get_rng_state())


def test_the_defaults_are_the_paper_s_sweep():
    comparison, dataset = plan()
    cells = comparison.cells(dataset.digest)
    assert len(cells) == 4 * 5 * 3
    assert {cell.batch_size for cell in cells} == {32, 16, 8, 4, 2}
    assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.parametrize("field", ["learning_rate", "epochs", "data_digest", "threads", "precision", "limit_train"])
def test_the_identity_of_a_cell_follows_everything_that_determines_it(field):
    cell = Comparison().cells("0" * 16)[0]
    changed = cell.model_copy(update={field: {"data_digest": "1", "precision": "bf16"}.get(field, 7)})
    assert changed.id != cell.id
    assert cell.model_copy().id == cell.id


def test_names_that_no_encoding_has_have_an_identity_of_their_own():
    """Names of files that are not UTF-8."""
    ids = {Comparison(dataset=name).cells("0")[0].id for name in ("folder:caf\udce9", "folder:caf\udce8", "folder:caf")}
    assert len(ids) == 3
    plain = Comparison().cells("0")[0]
    assert plain.model_copy(update={"options": {"a": ["caf\udce9"]}}).id != plain.id


def test_a_normalization_batch_equal_to_the_batch_is_the_same_cell():
    plain = Comparison(norms="bn", batch_sizes=32, seeds=1).cells("d")
    both = Comparison(norms="bn", batch_sizes=32, normalization_batches=(32, 2), seeds=1).cells("d")
    assert both[0] == plain[0]
    assert both[1].statistics_batch == 2


def test_the_command_asks_for_the_same_configuration(tmp_path):
    from typer.testing import CliRunner

    from groupnorm import cli

    comparison = Comparison(
        norms=("bn", "gn:8"), batch_sizes=(16,), normalization_batches=(8, 2), epochs=2, device="cpu", seeds=1,
        limit_train=64, track=("tensorboard", "wandb"), weight_decay=0.0,
    )  # fmt: skip
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groupnorm.cli.compare.run", lambda out, options: seen.update(options, out=out))
        words = comparison.command(tmp_path)
        assert words == shlex.split(shlex.join(words))
        result = CliRunner().invoke(cli.app, words[1:])
    assert result.exit_code == 0, result.output
    assert seen.pop("out") == tmp_path
    again = Comparison(**{**seen, "device": "cpu"})
    assert again == comparison


def test_a_notebook_completes_the_options_of_compare():
    parameters = inspect.signature(compare).parameters
    assert set(parameters) == {"out", "progress", *Comparison.model_fields}
    assert parameters["seeds"].default == Comparison().seeds
