"""What was done to a norm by hand: kept, told as lost, or refused with the remedy."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import groupnorm
from groupnorm.errors import ConversionError

X = torch.randn(2, 8, 4, 4)


def refused(model, to="gn"):
    row = groupnorm.plan(model, to)["0"]
    assert row.action == "refuse"
    with pytest.raises(ConversionError, match="cannot be converted"):
        groupnorm.convert_(model, to)
    plan = groupnorm.plan(model, to)
    plan["0"].action = "replace"
    with pytest.raises(ConversionError, match="0 cannot"):
        groupnorm.convert_(model, plan)
    return row.why


def test_a_norm_whose_forward_was_replaced_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(8))
    model[0].forward = lambda x: x
    assert "its forward was replaced" in refused(model)
    del model[0].forward
    assert groupnorm.plan(model)["0"].action == "replace"


def test_a_norm_with_a_hook_of_accelerate_is_refused():
    hooks = pytest.importorskip("accelerate.hooks")
    model = nn.Sequential(nn.BatchNorm2d(8))
    hooks.add_hook_to_module(model[0], hooks.ModelHook())
    assert "remove_hook_from_module" in refused(model)
    hooks.remove_hook_from_module(model[0])
    assert groupnorm.plan(model)["0"].action == "replace"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda norm: prune.random_unstructured(norm, "weight", 0.5),
        lambda norm: prune.identity(norm, "bias"),
        lambda norm: torch.nn.utils.weight_norm(norm, "weight"),
    ],
)
def test_norms_whose_weight_is_computed_by_hooks_are_refused(change):
    model = nn.Sequential(nn.BatchNorm2d(8))
    change(model[0])
    assert "use prune.remove, remove_weight_norm or remove_spectral_norm first" in refused(model)


def test_parameters_buffers_and_children_added_by_hand_are_told_as_lost():
    model = nn.Sequential(nn.BatchNorm2d(8))
    model[0].extra = nn.Parameter(torch.zeros(2))
    model[0].register_buffer("mask", torch.ones(8))
    model[0].register_buffer("nothing", None)
    model[0].probe = nn.ReLU()
    parametrize.register_parametrization(model[0], "running_var", nn.ReLU())
    plan = groupnorm.plan(model)
    assert set(plan["0"].lost) == {"running statistics", "extra", "mask", "probe", "parametrization of running_var"}
    assert "1 lose mask" in plan.summary


@pytest.mark.parametrize(
    ("old", "new"), [("bn", "bgn"), ("bgn", "bn"), ("bgn", "frn"), ("bgn:4", "bgn:2"), ("frozen", "cn")]
)
def test_running_statistics_of_other_sets_are_lost_and_the_norm_works(old, new):
    model = nn.Sequential(groupnorm.norm_layer(old)(8))
    model(X)
    assert groupnorm.plan(model, new)["0"].lost[0] == "running statistics"
    for mode in (True, False):
        converted = groupnorm.convert(model, new).train(mode)
        assert converted(X).isfinite().all()


@pytest.mark.parametrize(("old", "new"), [("bn", "brn"), ("brn", "bn"), ("bn", "frozen"), ("frozen", "brn")])
def test_running_statistics_of_the_same_sets_are_kept(old, new):
    model = nn.Sequential(groupnorm.norm_layer(old)(8))
    model(X)
    plan = groupnorm.plan(model, new)
    assert plan["0"].lost == ()
    assert torch.equal(groupnorm.convert(model, plan)[0].running_mean, model[0].running_mean)


@pytest.mark.parametrize("old", ["gn", "brn", "frn", "bn"])
@pytest.mark.parametrize("new", ["ln", "cn"])
def test_attributes_set_by_hand_go_along_from_any_norm(old, new):
    model = nn.Sequential(groupnorm.norm_layer(old)(8))
    model[0].no_weight_decay = True
    converted = groupnorm.convert(model, new)[0]
    assert converted.no_weight_decay
    assert vars(converted).keys() == vars(groupnorm.norm_layer(new)(8)).keys() | {"no_weight_decay"}


def test_an_attribute_called_activation_means_something_on_our_group_norm_alone():
    model = nn.Sequential(nn.GroupNorm(4, 8))
    model[0].activation = "relu"
    assert groupnorm.convert(model, "gn:2")(X).min() < 0


@pytest.mark.parametrize(
    ("before", "rank"),
    [
        ([nn.Conv3d(3, 8, 1)], 5),
        ([nn.ConvTranspose1d(3, 8, 1), nn.ReLU()], 3),
        ([nn.Linear(3, 8)], 2),
        ([nn.Conv2d(3, 8, 1), nn.Conv3d(8, 8, 1)], 5),
    ],
)
def test_the_class_of_batch_norm_is_that_of_the_layer_before(before, rank):
    model = nn.Sequential(*before, nn.GroupNorm(2, 8))
    row = groupnorm.plan(model, "bn").rows[0]
    assert (row.rank, row.why) == (rank, "running statistics start at 0 and 1")
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}
    assert type(groupnorm.convert(model, "bn")[-1]) is kinds[rank]


@pytest.mark.parametrize(
    "before", [[], [nn.Conv2d(3, 8, 1), nn.Flatten()], [nn.Conv2d(3, 8, 1), nn.Sequential(nn.ReLU())]]
)
def test_a_batch_norm_of_no_known_rank_is_taken_for_one_of_images_and_says_so(before):
    model = nn.Sequential(*before, nn.SyncBatchNorm(8))
    plan = groupnorm.plan(model, "bn")
    assert plan.rows[0].why == "taken for BatchNorm2d: pass sample_input= to be certain"
    assert type(groupnorm.convert(model, plan)[-1]) is nn.BatchNorm2d


def test_the_rank_that_a_plan_found_is_that_of_its_conversion():
    model = nn.Sequential(nn.GroupNorm(2, 8)).eval()
    plan = groupnorm.plan(model, "bn", sample_input=torch.randn(2, 8, 3, 3, 3))
    assert type(groupnorm.convert(model, plan)[0]) is nn.BatchNorm3d
    assert type(groupnorm.convert(nn.Sequential(nn.InstanceNorm1d(8)), "bn")[0]) is nn.BatchNorm1d


def test_a_weight_before_two_norms_is_standardised_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.a, self.b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.conv(x)
            return self.a(y) + self.b(y)

    model, x = Twice(), torch.randn(2, 3, 6, 6)
    plan = groupnorm.plan(model, "ws+gn", sample_input=x)
    assert [row.becomes for row in plan.rows] == ["ws+gn:4", "ws+gn:4"]
    assert plan["b"].why == "the weight of conv is standardised once, for a and this"
    report = groupnorm.convert_(model, plan)
    assert len(model.conv.parametrizations.weight) == 1
    report.undo()
    assert not parametrize.is_parametrized(model.conv)
    plan["a"].action = "skip"
    groupnorm.convert_(model, plan)
    assert parametrize.is_parametrized(model.conv)


def test_synchronising_by_a_conversion_keeps_an_activation_which_torchs_function_drops():
    norms = pytest.importorskip("timm.layers.norm_act")
    model = groupnorm.convert(nn.Sequential(norms.BatchNormAct2d(8)), "brn").eval()
    assert groupnorm.convert(model, "syncbn")(X).min() == 0
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(model)[0]) is nn.SyncBatchNorm  # as docs/ecosystem.md tells


@pytest.mark.parametrize("spec", ["cbn", "ws+cbn"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (nn.utils.parametrizations.weight_norm, "is made of several parameters"),
        (lambda layer: nn.ConvTranspose2d(8, 8, 3), "use another norm after a transposed convolution"),
    ],
    ids=["weight norm", "transposed"],
)
def test_a_norm_that_cannot_compute_with_the_layer_before_it_is_refused_in_the_plan(change, why, spec):
    model = nn.Sequential(change(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8))
    row = groupnorm.plan(model, spec, sample_input=X)["1"]
    assert row.action == "refuse"
    assert why in row.why
    with pytest.raises(ConversionError, match=f"- 1: .*{why}"):
        groupnorm.convert_(model, spec, sample_input=X)


def test_statistics_that_stay_what_they_are_are_lost_with_them():
    model = nn.Sequential(nn.BatchNorm2d(8))
    model[0].track_running_stats = False
    assert groupnorm.plan(model, "bgn")["0"].lost == ("running statistics", "track_running_stats=False")
    assert groupnorm.plan(model, "gn")["0"].lost == ("running statistics",)
    assert groupnorm.plan(model, "brn")["0"].lost == ()
