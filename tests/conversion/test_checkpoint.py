"""Checkpoints from before a conversion for the model after it, and back."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import groupnorm
from groupnorm.errors import ArgumentError, ConversionError

X = torch.randn(2, 3, 8, 8)


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def drawn(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("to", ["gn", "ws+gn", "frn", "brn", "sn", "ln"])
def test_a_checkpoint_of_batch_norm_is_what_would_have_been_converted(to):
    trained = drawn(network())
    trained(X)
    sample = X if to == "ws+gn" else None
    expected = groupnorm.convert(trained, to, sample_input=sample)
    model = groupnorm.convert(network(), to, sample_input=sample)
    found = groupnorm.load_checkpoint_(model, trained.state_dict())
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    running = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert found.dropped == (() if to in ("brn", "sn") else running)
    assert found.renamed == ({"0.weight": "0.parametrizations.weight.original"} if to == "ws+gn" else {})
    assert found.kept == {"frn": ("1.learned_eps",), "sn": ("1.mean_weight", "1.var_weight")}.get(to, ())


@pytest.mark.parametrize("to", ["gn", "ws+gn", "frn", "sn"])
def test_a_converted_checkpoint_goes_back(to):
    converted = drawn(groupnorm.convert(network(), to, sample_input=X if to == "ws+gn" else None))
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = groupnorm.load_checkpoint_(model, converted.state_dict())
    state = converted.state_dict()
    assert torch.equal(model[0].weight, state.get("0.weight", state.get("0.parametrizations.weight.original")))
    assert torch.equal(model[1].weight, converted[1].weight)
    assert found.renamed == ({"0.parametrizations.weight.original": "0.weight"} if to == "ws+gn" else {})
    if to != "sn":
        assert found.kept == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
        assert torch.equal(model[1].running_var, before["1.running_var"])


def test_the_report_reads():
    found = groupnorm.load_checkpoint_(groupnorm.convert(network(), "frn"), network().state_dict())
    assert str(found) == (
        "6 keys loaded; 3 not used: 1.running_mean, 1.running_var, 1.num_batches_tracked; 1 not in it: 1.learned_eps"
    )


def test_other_differences_are_refused_and_nothing_is_loaded():
    model = groupnorm.convert(network())
    before = copy.deepcopy(model.state_dict())
    state = drawn(network()).state_dict()
    with pytest.raises(ConversionError, match=r"has \['more'\] that the model lacks, and lacks \['4.bias'\]; expected"):
        groupnorm.load_checkpoint_(model, {**{k: v for k, v in state.items() if k != "4.bias"}, "more": X})
    with pytest.raises(ConversionError, match=r"has nothing that the model lacks, and lacks \['1.weight'\]"):
        groupnorm.load_checkpoint_(model, {k: v for k, v in state.items() if k != "1.weight"})
    with pytest.raises(ArgumentError, match=r"4.bias has shape \(5,\) in the checkpoint; expected \(4,\)"):
        groupnorm.load_checkpoint_(model, {**state, "4.bias": torch.zeros(5)})
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_state_that_is_no_tensor_goes_through_its_module():
    trained = groupnorm.convert(network(), "cbn", sample_input=X)
    trained[1].set_extra_state({"steps": 7, "past": []})
    model = groupnorm.convert(network(), "cbn", sample_input=X)
    assert "1._extra_state" in groupnorm.load_checkpoint_(model, trained.state_dict()).loaded
    assert model[1].get_extra_state()["steps"] == 7
    found = groupnorm.load_checkpoint_(model, network().state_dict())
    assert found.kept == ("1._extra_state",)
    back = groupnorm.load_checkpoint_(network(), trained.state_dict())
    assert back.dropped == ("1._extra_state",)


class Counting(nn.Linear):
    """Its extra state is a tensor that it makes when it is asked."""

    calls = 0

    def get_extra_state(self):
        return torch.tensor([self.calls])

    def set_extra_state(self, state):
        self.calls = int(state)


def test_state_that_is_a_tensor_goes_through_its_module():
    trained, model = nn.Sequential(Counting(2, 2)), nn.Sequential(Counting(2, 2))
    trained[0].calls = 3
    groupnorm.load_checkpoint_(model, trained.state_dict())
    assert model[0].calls == 3


class OddBatchNorm(nn.BatchNorm2d):
    """A norm that no rule knows."""


def test_a_norm_that_no_rule_knows_has_to_be_the_same():
    trained = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), OddBatchNorm(8), nn.BatchNorm2d(8)))
    model = groupnorm.convert(trained, "gn", where="2")
    drawn(model)
    found = groupnorm.load_checkpoint_(model, trained.state_dict())
    assert torch.equal(model[1].weight, trained[1].weight)
    assert found.dropped == ("2.running_mean", "2.running_var", "2.num_batches_tracked")
    state = trained.state_dict()
    del state["1.running_mean"]
    with pytest.raises(ConversionError, match=r"lacks \['1.running_mean'\]"):
        groupnorm.load_checkpoint_(model, state)


class Squared(nn.Module):
    def forward(self, x):
        return x**2


@pytest.mark.parametrize("standardized", [False, True])
def test_only_standardised_weights_are_renamed(standardized):
    model, state = network(), drawn(network()).state_dict()
    if standardized:
        groupnorm.nn.standardize_weight_(model[0])
    parametrize.register_parametrization(model[0], "weight", Squared())
    with pytest.raises(ConversionError, match=r"has \['0.weight'\].*lacks \['0.parametrizations.weight.original'\]"):
        groupnorm.load_checkpoint_(model, state)


def test_the_scale_of_a_norm_is_not_passed_over_for_its_parametrization():
    model, state = groupnorm.convert(network()), drawn(network()).state_dict()
    parametrize.register_parametrization(model[1], "weight", Squared())
    with pytest.raises(ConversionError, match=r"lacks \['1.parametrizations.weight.original'\]"):
        groupnorm.load_checkpoint_(model, state)
    with pytest.raises(ConversionError, match=r"lacks \['1.weight'\]"):
        groupnorm.load_checkpoint_(network(), model.state_dict())


def test_a_norm_alone_is_a_model():
    with pytest.raises(ConversionError, match=r"lacks \['weight', 'bias'\]"):
        groupnorm.load_checkpoint_(nn.BatchNorm2d(8), {})


def test_what_a_checkpoint_may_be_instead_is_told(tmp_path):
    model, state = groupnorm.convert(network()), network().state_dict()
    with pytest.raises(ArgumentError, match=r"the path '.*x\.pt'; expected a state dict: load it with torch\.load"):
        groupnorm.load_checkpoint_(model, tmp_path / "x.pt")
    with pytest.raises(ArgumentError, match=r"checkpoint is a Sequential; expected a state dict: pass its state_dict"):
        groupnorm.load_checkpoint_(model, network())
    with pytest.raises(ArgumentError, match=r"with tensors under 'state_dict'.*: pass checkpoint\['state_dict'\]"):
        groupnorm.load_checkpoint_(model, {"epoch": 3, "state_dict": state})
    wrapped = {f"module.{key}": value for key, value in state.items()}
    with pytest.raises(ConversionError, match=r"keys begin with 'module\.', .*: pass {key\.removeprefix\('module\.'\)"):
        groupnorm.load_checkpoint_(model, wrapped)
    averaged = torch.optim.swa_utils.AveragedModel(network()).state_dict()
    with pytest.raises(
        ConversionError, match=r": pass {key\.removeprefix\('module\.'\).* if key\.startswith\('module\."
    ):
        groupnorm.load_checkpoint_(model, averaged)
    compiled = {f"_orig_mod.module.{key}": value for key, value in state.items()}
    with pytest.raises(ConversionError, match=r"keys begin with '_orig_mod\.module\.'"):
        groupnorm.load_checkpoint_(model, compiled)
    with pytest.raises(ConversionError, match=r"keys of the model begin with 'module\.', .*: pass model\.module"):
        groupnorm.load_checkpoint_(nn.Sequential(OrderedDict(module=model)), state)
    with pytest.raises(ConversionError, match=r"begin with '0\.', those of the checkpoint do not: pass model\.get_sub"):
        groupnorm.load_checkpoint_(nn.Sequential(model), state)
    with pytest.raises(
        ConversionError, match=r"has \['a.weight'.* and 2 more that .*load it with model\.load_state_dict"
    ):
        groupnorm.load_checkpoint_(model, {f"{name}.weight": X for name in "abcdefg"})
    with pytest.raises(ArgumentError, match=r"the checkpoint has the key 0, a int; expected a state dict, whose keys"):
        groupnorm.load_checkpoint_(model, {0: X})
    with pytest.raises(ArgumentError, match=r"4.bias is a list in the checkpoint; expected a tensor of shape \(4,\)"):
        groupnorm.load_checkpoint_(model, {**state, "4.bias": [0.0] * 4})


class Copies(nn.Sequential):
    """Its state dict is made of copies."""

    def state_dict(self, *arguments, **options):
        return {key: value.clone() for key, value in super().state_dict(*arguments, **options).items()}


class Transposed(nn.Linear):
    """Its state dict holds the transpose of the weight."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}packed"] = self.weight.detach().T.contiguous()
        destination[f"{prefix}bias"] = self.bias.detach()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        for name in ("packed", "bias"):
            if f"{prefix}{name}" not in state_dict:
                missing.append(f"{prefix}{name}")
                return
        with torch.no_grad():
            self.weight.copy_(state_dict[f"{prefix}packed"].T)
            self.bias.copy_(state_dict[f"{prefix}bias"])


class Renamed(nn.Linear):
    """It takes the names of an old version, and keeps a sum of its weights."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.total = 0.0
        self.register_load_state_dict_pre_hook(self.rename)
        self.register_load_state_dict_post_hook(self.add_up)

    @staticmethod
    def rename(module, state_dict, prefix, *rest):
        for old, new in (("w", "weight"), ("b", "bias")):
            if f"{prefix}{old}" in state_dict:
                state_dict[f"{prefix}{new}"] = state_dict.pop(f"{prefix}{old}")

    @staticmethod
    def add_up(module, incompatible_keys):
        module.total = float(module.weight.detach().sum())


def with_protocols(norm):
    layers = (nn.Conv2d(3, 8, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Transposed(8, 6), Renamed(6, 4))
    return Copies(*layers)


def test_values_go_through_the_loading_of_the_model_and_its_modules():
    trained, model = drawn(with_protocols(nn.BatchNorm2d(8))), with_protocols(groupnorm.GroupNorm(4, 8))
    state = trained.state_dict()
    state["5.w"], state["5.b"] = state.pop("5.weight"), state.pop("5.bias")
    found = groupnorm.load_checkpoint_(model, state)
    theirs = dict(trained.named_parameters())
    assert all(torch.equal(theirs[key], value) for key, value in model.named_parameters())
    assert model[5].total == float(trained[5].weight.detach().sum())
    assert set(found.loaded) == set(model.state_dict())
    assert found.dropped == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert not found.kept


@pytest.mark.parametrize("lacks", ["4.packed", "5.b"])
def test_what_a_module_of_its_own_loading_lacks_is_refused(lacks):
    trained, model = drawn(with_protocols(nn.BatchNorm2d(8))), with_protocols(groupnorm.GroupNorm(4, 8))
    state, before = trained.state_dict(), copy.deepcopy(model.state_dict())
    state["5.w"], state["5.b"] = state.pop("5.weight"), state.pop("5.bias")
    del state[lacks]
    missing = "5.bias" if lacks == "5.b" else lacks
    with pytest.raises(ConversionError, match=rf"lacks \['{missing}'\]"):
        groupnorm.load_checkpoint_(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model[5].total == 0.0


def test_a_model_whose_loading_returns_nothing_accounts_by_keys():
    class Silent(nn.Sequential):
        def load_state_dict(self, state_dict, strict=True):
            super().load_state_dict(state_dict, strict)

    trained, model = drawn(network()), Silent(*groupnorm.convert(network()))
    groupnorm.load_checkpoint_(model, trained.state_dict())
    assert torch.equal(model[4].weight, trained[4].weight)
    with pytest.raises(ConversionError, match=r"lacks \['4.bias'\]"):
        groupnorm.load_checkpoint_(model, {k: v for k, v in trained.state_dict().items() if k != "4.bias"})


BROKEN = {
    "meta": lambda value: value.to("meta"),
    "sparse": lambda value: value.to_sparse(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_value_that_cannot_be_copied_is_named_and_nothing_is_loaded(kind):
    model, state = groupnorm.convert(network()), drawn(network()).state_dict()
    before = copy.deepcopy(model.state_dict())
    state["4.weight"] = BROKEN[kind](state["4.weight"])
    with pytest.raises(ArgumentError, match=r"4\.weight cannot be copied from the checkpoint.*expected a dense"):
        groupnorm.load_checkpoint_(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_whatever_fails_on_the_way_everything_is_as_before():
    class Fails(nn.Linear):
        def set_extra_state(self, state):
            self.history.append(state)
            self.extra = state
            raise KeyError("width")

        def get_extra_state(self):
            return {}

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Renamed(2, 2), nn.LazyLinear(4), Fails(4, 4))
    model[4].history = []
    state = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Renamed(2, 2), nn.Linear(3, 4), Fails(4, 4)))
    state = state.state_dict()
    before = copy.deepcopy({key: value for key, value in model.state_dict().items() if key[0] != "3"})
    parameters = list(model.parameters())
    with pytest.raises(ConversionError, match=r"loading the checkpoint failed: KeyError: 'width'; nothing is loaded"):
        groupnorm.load_checkpoint_(model, state)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if key != "4._extra_state")
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert model[3].has_uninitialized_params()
    assert not model[4].history
    assert not hasattr(model[4], "extra")
    assert model[2].total == 0.0
    del state["4._extra_state"]
    with pytest.raises(ConversionError, match=r"lacks \['4\._extra_state'\]"):
        groupnorm.load_checkpoint_(model, state)
    assert model[3].has_uninitialized_params()
    assert model[3](torch.randn(2, 5)).shape == (2, 4)


@pytest.mark.parametrize("part", ["all", "head"])
@pytest.mark.parametrize("to", ["gn", "frn", "ws+gn"])
def test_a_model_on_meta_gets_the_values(to, part):
    trained = drawn(network())
    expected = groupnorm.convert(trained, to, sample_input=X)
    model = groupnorm.convert(network(), to, sample_input=X)
    (model if part == "all" else model[4]).to("meta")
    found = groupnorm.load_checkpoint_(model, trained.state_dict())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert found.kept == (("1.learned_eps",) if to == "frn" else ())


def test_a_model_on_meta_keeps_its_ties_and_its_dtype_and_stays_there_when_it_cannot_be_loaded():
    def make():
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    trained = drawn(make())
    with torch.device("meta"):
        model = groupnorm.convert(make(), "gn").half()
    with pytest.raises(ArgumentError, match=r"2\.bias has shape"):
        groupnorm.load_checkpoint_(model, {**trained.state_dict(), "2.bias": torch.zeros(9)})
    assert all(parameter.is_meta for parameter in model.parameters())
    groupnorm.load_checkpoint_(model, trained.state_dict())
    assert model[2].weight is model[0].weight
    assert torch.equal(model[0].weight, trained[0].weight.half())


class OwnState(nn.Module):
    """Where a checkpoint lacks its table, it takes the one that it has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(3.0))

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        state_dict.setdefault(f"{prefix}table", self.table)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_a_key_that_its_module_fills_in_was_kept_and_is_nowhere_on_meta():
    model, state = nn.Sequential(network(), OwnState()), nn.Sequential(drawn(network())).state_dict()
    found = groupnorm.load_checkpoint_(model, state)
    assert found.kept == ("1.table",)
    assert "1.table" not in found.loaded
    with pytest.raises(ConversionError, match=r"1\.table has no value, neither in the model nor in the checkpoint"):
        groupnorm.load_checkpoint_(model.to("meta"), state)
    assert model[1].table.is_meta


def test_a_lazy_model_is_loaded():
    trained = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4)))
    model = nn.Sequential(nn.LazyConv2d(8, 3), groupnorm.GroupNorm(4, 8), nn.Flatten(), nn.LazyLinear(4))
    groupnorm.load_checkpoint_(model, trained.state_dict())
    assert torch.equal(model[3].weight, trained[3].weight)
    expected = groupnorm.convert(trained, "gn:4")
    torch.testing.assert_close(model(X), expected(X))


def test_a_tied_weight_that_the_checkpoint_has_once_is_loaded():
    """As safetensors keeps them."""
    trained = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    trained[2].weight = trained[0].weight
    model = groupnorm.convert(drawn(copy.deepcopy(trained)), "gn")
    state = drawn(trained).state_dict()
    del state["2.weight"]
    found = groupnorm.load_checkpoint_(model, state)
    assert torch.equal(model[2].weight, trained[2].weight)
    assert "2.weight" in found.loaded


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("to", ["bn", "in", "frozen", "syncbn"])
def test_versions_are_those_of_the_norm_that_was_saved(to, plain):
    """A plain dict has no versions, which torch takes for a state of long ago."""
    trained = drawn(network())
    state = (trained if to == "in" else groupnorm.convert(trained, "gn")).state_dict()
    model = network() if to == "bn" else groupnorm.convert(network(), to)
    found = groupnorm.load_checkpoint_(model, dict(state) if plain else state)
    running = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert found.kept == (() if to == "in" else running)
    assert found.dropped == (running if to == "in" else ())


@pytest.mark.parametrize("to", ["pn", "mabn"])
def test_schedules_begin_anew_with_a_checkpoint_of_batch_norm(to):
    trained = drawn(network())
    trained[1].num_batches_tracked.fill_(62_000)
    model = groupnorm.convert(network(), to)
    groupnorm.load_checkpoint_(model, trained.state_dict())
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].weight, trained[1].weight)


def test_a_parameter_that_cannot_be_written_is_named_and_nothing_is_loaded():
    model = groupnorm.convert(network())
    model[4].bias = nn.Parameter(torch.zeros(1).expand(4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConversionError, match=r'loading the checkpoint failed: [^;]*"4\.bias"'):
        groupnorm.load_checkpoint_(model, drawn(network()).state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_custom_loading_that_replaces_storages_is_taken_back():
    class Replaces(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *rest):
            self.weight.data = state_dict[f"{prefix}weight"].clone()[:1]
            self.bias = nn.Parameter(state_dict[f"{prefix}bias"].clone())
            self.register_buffer("more", torch.ones(2))
            raise KeyError("more")

    model, state = nn.Sequential(Replaces(3, 4)), nn.Sequential(drawn(nn.Linear(3, 4))).state_dict()
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    with pytest.raises(ConversionError, match="KeyError: 'more'"):
        groupnorm.load_checkpoint_(model, state)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_mapping_under_a_key_of_the_model_is_its_own():
    class Table(nn.Module):
        rows = None

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            destination[f"{prefix}rows"] = {"a": torch.ones(2)}

        def _load_from_state_dict(self, state_dict, prefix, *rest):
            self.rows = state_dict[f"{prefix}rows"]

    model = nn.Sequential(Table(), groupnorm.GroupNorm(2, 4))
    found = groupnorm.load_checkpoint_(model, nn.Sequential(Table(), nn.BatchNorm2d(4)).state_dict())
    assert torch.equal(model[0].rows["a"], torch.ones(2))
    assert "0.rows" in found.loaded
