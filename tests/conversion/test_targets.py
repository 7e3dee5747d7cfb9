"""New norms in the places of old ones: whose running statistics they take, where they begin, and with which tensors."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.conversion.rules import facts
from groupnorm.errors import ConversionError
from groupnorm.nn.catalog import CATALOG

X = torch.randn(4, 8, 5, 5)
TRACKING = [
    row.spec
    for row in CATALOG.values()
    if row.make is not None and "running_var" in dict(row.make(8, row.resolve(8)).named_buffers())
]
assert {"bn", "pn", "mabn", "cn", "frozen", "cbn"} <= set(TRACKING)
X_OF_MODEL = torch.randn(8, 3, 10, 10)
SAMPLE = {"cbn": torch.randn(4, 3, 10, 10)}


def network(norm=None):
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm or nn.BatchNorm2d(8))


def trained(model, steps=30):
    nn.init.constant_(model[0].bias, 3.0)
    model.train()
    for _ in range(steps):
        model(torch.randn(4, 3, 10, 10))
    return model


@pytest.mark.parametrize("spec", [spec for spec in TRACKING if spec not in ("bn", "bgn")])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_trained_batch_norm_starts_as_its_state_dict_would_have_it_start(spec, in_place):
    model = trained(network())
    model[1].num_batches_tracked.fill_(62_000)
    state = copy.deepcopy(model.state_dict())
    loaded = groupnorm.convert(network(), spec, sample_input=SAMPLE.get(spec))
    assert not loaded.load_state_dict(state, strict=False).unexpected_keys
    if in_place:
        groupnorm.convert_(model, spec, sample_input=SAMPLE.get(spec))
    else:
        model = groupnorm.convert(model, spec, sample_input=SAMPLE.get(spec))
    for (name, tensor), (same, expected) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == same
        assert tensor == expected if name.endswith("_extra_state") else torch.equal(tensor, expected), name
    x = torch.randn(4, 3, 10, 10)
    for training in (True, False):
        assert torch.equal(model.train(training)(x), loaded.train(training)(x))


@pytest.mark.parametrize("spec", TRACKING)
@pytest.mark.parametrize("to", ["frozen", "bn"])
def test_running_statistics_go_to_batch_norm_where_the_old_norm_evaluates_with_them_or_are_lost(spec, to):
    if spec == to:
        pytest.skip("is that already")
    model = network() if spec == "bn" else groupnorm.convert(network(), spec, sample_input=SAMPLE.get(spec))
    trained(model, steps=100).eval()
    row = groupnorm.plan(model, to).rows[0]
    if CATALOG[spec].own_statistics:
        if to == "frozen":
            assert row.action == "refuse"
            assert "no running mean and variance of its 8 channels that batch norm evaluates with" in row.why
            with pytest.raises(ConversionError, match="convert to 'bn', call recompute_statistics_"):
                groupnorm.convert(model, to)
        else:
            assert "running statistics" in row.lost
            new = groupnorm.convert(model, to)[1]
            assert torch.equal(new.running_mean, torch.zeros(8))
            assert torch.equal(new.running_var, torch.ones(8))
            assert new.num_batches_tracked == 0
    else:
        assert "running statistics" not in row.lost
        x = torch.randn(4, 3, 10, 10)
        torch.testing.assert_close(groupnorm.convert(model, to)(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_remedy_for_statistics_of_something_else_works():
    model = trained(groupnorm.convert(network(), "cn"))
    frozen = groupnorm.convert(model, "bn")
    groupnorm.recompute_statistics_(frozen, [torch.randn(8, 3, 10, 10)])
    frozen = groupnorm.convert(frozen, "frozen")
    assert (frozen(torch.randn(64, 3, 10, 10)).mean((0, 2, 3)).abs() < 0.5).all()


@pytest.mark.parametrize(("old", "new"), [("pn", "pn:2"), ("cn", "cn:2"), ("pn", "cn")])
def test_statistics_of_something_else_do_not_go_to_another_such_norm(old, new):
    model = trained(groupnorm.convert(network(), old))
    assert "running statistics" in groupnorm.plan(model, new).rows[0].lost
    assert torch.equal(groupnorm.convert(model, new)[1].running_mean, torch.zeros(8))


UNTRACKED = [
    lambda: nn.BatchNorm2d(8, track_running_stats=False),
    lambda: nn.SyncBatchNorm(8, track_running_stats=False),
]


@pytest.mark.parametrize("make", UNTRACKED)
@pytest.mark.parametrize("spec", [spec for spec in TRACKING if spec not in ("bn", "frozen", "cbn")])
def test_a_batch_norm_that_evaluates_with_the_batch_loses_that_and_the_plan_says_so(spec, make):
    model = network(make())
    plan = groupnorm.plan(model, spec)
    if plan.rows[0].action == "skip":
        assert plan.rows[0].why == f"is {spec} already"
        assert groupnorm.convert_(network(nn.BatchNorm2d(8)), spec).plan.rows[0].lost == ()
    else:
        assert plan.rows[0].lost == ("evaluation with the statistics of the batch",)
        assert "1 lose evaluation with the statistics of the batch" in plan.summary
    loses = spec in ("bgn", "cn", "pn")
    assert groupnorm.plan(network(), spec).rows[0].lost == (("running statistics",) if loses else ())


def test_a_batch_norm_of_torch_that_evaluates_with_the_batch_stays_one():
    model = nn.Sequential(nn.SyncBatchNorm(8, track_running_stats=False, affine=False)).eval()
    new = groupnorm.convert(model, "bn", sample_input=X)
    assert type(new[0]) is nn.BatchNorm2d
    assert new.state_dict() == {}
    assert torch.equal(new(X), nn.functional.batch_norm(X, None, None, training=True))


@pytest.mark.parametrize("make", UNTRACKED)
def test_without_statistics_there_is_nothing_to_freeze_and_the_remedy_works(make):
    model = network(make())
    with pytest.raises(ConversionError, match="convert to 'syncbn', call recompute_statistics_"):
        groupnorm.convert(model, "frozen")
    if type(model[1]) is nn.BatchNorm2d:
        model = groupnorm.convert(model, "syncbn")
        groupnorm.recompute_statistics_(model, [torch.randn(8, 3, 10, 10)])
        assert groupnorm.plan(model, "frozen").summary == "1 of 1 norms become frozen"


@pytest.mark.parametrize("spec", ["bn", "brn", "syncbn", "ghost"])
def test_statistics_that_were_set_to_stay_do_so(spec):
    model = nn.Sequential(nn.SyncBatchNorm(8) if spec == "bn" else nn.BatchNorm2d(8))
    model[0].track_running_stats = False
    assert groupnorm.convert(model, spec, sample_input=None)[0].track_running_stats is False
    assert groupnorm.convert(nn.Sequential(nn.BatchNorm2d(8)), "brn")[0].track_running_stats is True


@pytest.mark.parametrize("spec", ["gn", "gn:3", "ln", "in", "brn", "frozen", "bgn:2"])
def test_a_norm_that_was_cut_has_the_channels_of_its_tensors(spec):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(8)).eval()
    for name in ("weight", "bias"):
        setattr(model[1], name, nn.Parameter(torch.randn(6)))
    model[1].running_mean, model[1].running_var = torch.randn(6), torch.rand(6)
    x = torch.randn(2, 3, 8, 8)
    assert groupnorm.plan(model, spec).rows[0].channels == 6
    new = groupnorm.convert(model, spec)
    assert new(x).shape == model(x).shape
    if spec in ("brn", "frozen"):
        torch.testing.assert_close(new(x), model(x))


def test_a_group_norm_that_was_cut_is_accelerated():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 8), nn.ReLU())
    for name in ("weight", "bias"):
        setattr(model[1], name, nn.Parameter(torch.randn(6)))
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    groupnorm.accelerate_(model)
    assert model[1].num_channels == 6
    torch.testing.assert_close(model(x), expected)


def test_a_norm_that_receives_other_channels_is_refused_by_its_input():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(8, affine=False, track_running_stats=False))
    row = groupnorm.plan(model, "gn", sample_input=torch.randn(2, 3, 8, 8)).rows[0]
    assert row.action == "refuse"
    assert "it receives (2, 6, 6, 6), and has 8 channels; expected (N, 8, *)" in row.why


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(np.int64(8), eps=np.float32(1e-3)),
        nn.InstanceNorm2d(np.int32(8), eps=np.float64(1e-3)),
        nn.GroupNorm(np.int64(4), np.int64(8), eps=np.float32(1e-3)),
        nn.SyncBatchNorm(np.int64(8), momentum=np.float32(0.1)),
    ],
)
@pytest.mark.parametrize("spec", ["gn:2", "ln", "brn", "frn", "pn"])
def test_numbers_of_numpy_are_numbers(norm, spec):
    model = nn.Sequential(copy.deepcopy(norm))
    plan = groupnorm.plan(model, spec)
    assert groupnorm.Plan.from_json(plan.to_json()) == plan
    known = facts(model[0])
    assert {type(known.channels), type(known.eps)} == {int, float}
    new = groupnorm.convert(model, spec)
    assert new[0].eps == float(norm.eps)
    assert new(X).isfinite().all()


def test_a_group_norm_with_numbers_of_numpy_is_accelerated():
    model = nn.Sequential(nn.GroupNorm(np.int64(4), np.int64(8)), nn.ReLU())
    expected = model(X)
    plan = groupnorm.accelerate_.plan(model)
    assert groupnorm.Plan.from_json(plan.to_json()) == plan
    groupnorm.accelerate_(model)
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("spec", ["cn", "pn"])
@pytest.mark.parametrize("way", ["convert", "load_state_dict", "load_checkpoint_"])
def test_a_norm_that_normalises_before_its_statistics_does_not_take_those_of_batch_norm(spec, way):
    model = trained(network())
    if way == "convert":
        assert groupnorm.plan(model, spec).rows[0].lost == ("running statistics",)
        new = groupnorm.convert(model, spec)
    else:
        new = groupnorm.convert(network(), spec)
        load = new.load_state_dict if way == "load_state_dict" else lambda state: groupnorm.load_checkpoint_(new, state)
        load(model.state_dict())
    assert torch.equal(new[1].running_mean, torch.zeros(8))
    assert torch.equal(new[1].running_var, torch.ones(8))
    assert new[1].num_batches_tracked == 0
    assert (new.eval()(X_OF_MODEL) - copy.deepcopy(new).train()(X_OF_MODEL)).abs().max() < 1.5


@pytest.mark.parametrize("spec", ["cn", "pn", "mabn", "sn"])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_norm_gets_its_own_statistics_back(spec, metadata):
    model = trained(groupnorm.convert(network(), spec))
    state = model.state_dict() if metadata else dict(model.state_dict())
    for load in (lambda new: new.load_state_dict(state), lambda new: groupnorm.load_checkpoint_(new, state)):
        new = groupnorm.convert(network(), spec)
        load(new)
        for name, tensor in model.state_dict().items():
            assert torch.equal(new.state_dict()[name], tensor), name
        assert torch.equal(model.eval()(X_OF_MODEL), new.eval()(X_OF_MODEL))


@pytest.mark.parametrize(
    ("old", "new", "starts"),
    [
        (lambda: nn.GroupNorm(2, 8), "bn", True),
        (lambda: nn.GroupNorm(2, 8), "syncbn", True),
        (lambda: nn.InstanceNorm2d(8), "bn", True),
        (lambda: nn.BatchNorm2d(8), "cn", True),
        (lambda: nn.InstanceNorm2d(8, track_running_stats=True), "bn", False),
        (lambda: nn.BatchNorm2d(8), "brn", False),
        (lambda: nn.SyncBatchNorm(8, track_running_stats=False), "bn", False),
        (lambda: nn.BatchNorm2d(8), "gn", False),
    ],
)
def test_running_statistics_that_start_anew_are_in_the_plan(old, new, starts):
    plan = groupnorm.plan(network(old()), new)
    assert ("running statistics start at 0 and 1" in plan.rows[0].why) == starts
    assert ("; the running statistics of 1 start at 0 and 1" in plan.summary) == starts
