"""A converted model fitted to its original: least squares against their definition, sums, and real accuracy."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import groupnorm
from groupnorm.conversion.calibrate import RIDGE, Calibration
from groupnorm.conversion.least_squares import ChannelFit
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.lab.data import load
from groupnorm.lab.models.small_resnet import resnet_tiny


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(model):
    """The model in float64 with random scales, shifts and running statistics."""
    for module in model.double().modules():
        for name in ("weight", "bias", "running_mean"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor) and not isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(tensor)
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def batches(count=4, size=6):
    return [torch.randn(size, 3, 8, 8, dtype=torch.float64) for _ in range(count)]


def plain():
    return randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))


def test_scale_and_shift_are_the_least_squares_of_all_batches():
    model, data = plain().eval(), batches()
    new = groupnorm.convert(model, "gn:2")
    result = groupnorm.calibrate_(new, model, data)
    a = F.group_norm(model[0](torch.cat(data)), 2, eps=model[1].eps)
    t = model[1](model[0](torch.cat(data))).detach()
    a, left = a.detach(), 0.0
    for channel in range(8):
        ones = torch.stack([a[:, channel].flatten(), torch.ones_like(a[:, channel].flatten())], 1)
        solution = torch.linalg.lstsq(ones, t[:, channel].flatten()[:, None]).solution[:, 0]
        left += float((t[:, channel].flatten() - ones @ solution).square().sum())
        torch.testing.assert_close(torch.stack([new[1].weight[channel], new[1].bias[channel]]), solution)
    whole = float((t - t.mean((0, 2, 3), keepdim=True)).square().sum())
    assert result.unexplained == {"1": pytest.approx(left / whole)}


@pytest.mark.parametrize("passes", [1, 3])
def test_what_the_new_norms_can_give_is_given(passes):
    """The second layer is fitted to what the first gives once it is fitted."""
    original = randomised(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8))
    ).eval()
    new = copy.deepcopy(original)
    new[1], new[4] = groupnorm.GroupNorm(2, 8).double(), groupnorm.GroupNorm(4, 8).double()
    data = batches()
    result = groupnorm.calibrate_(new, original, data, passes=passes)
    torch.testing.assert_close(new(data[0]), original(data[0]))
    assert max(result.unexplained.values()) < 1e-9


def test_a_group_norm_with_other_groups_is_fitted_too():
    original = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), groupnorm.GroupNorm(4, 8, activation="silu"))).eval()
    new, data = groupnorm.convert(original, "gn:2"), batches()
    groupnorm.calibrate_(new, original, data)
    x = original[0](torch.cat(data))
    fit = ChannelFit(8, x.device)
    fit.add(F.group_norm(x, 2, eps=1e-5), F.group_norm(x, 4, original[1].weight, original[1].bias, 1e-5))
    torch.testing.assert_close((new[1].weight, new[1].bias), fit.solve(1.0))


class Branches(nn.Module):
    """Two branches that are added in one of several ways."""

    def __init__(self, add):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.right = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.add = add

    def forward(self, x):
        return torch.relu(self.add(self.left(x), self.right(x)))


def in_place(a, b):
    a += b
    return a


def other_in_place(a, b):
    b += a
    return b


SUMS = {
    "+": lambda a, b: a + b,
    "add": torch.add,
    "method": lambda a, b: a.add(b),
    "in place": in_place,
    "other in place": other_in_place,
    "add_": lambda a, b: a.add_(b),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_last_branch_makes_good_what_the_first_has_wrong(name):
    model, data = randomised(Branches(SUMS[name])).eval(), batches(1, 24)
    new = groupnorm.convert(model, "gn:2")
    result = groupnorm.calibrate_(new, model, data)
    assert set(result.unexplained) == {"left.1", "right.1", "right.1 in a sum"}
    x = torch.cat(data)
    wanted = model.left(x) + model.right(x) - new.left(x)
    fit = ChannelFit(8, x.device)
    fit.add(F.group_norm(new.right[0](x), 2, eps=1e-5), wanted)
    torch.testing.assert_close((new.right[1].weight, new.right[1].bias), fit.solve(1.0))
    alone = ChannelFit(8, x.device)
    alone.add(F.group_norm(new.left[0](x), 2, eps=1e-5), model.left(x))
    torch.testing.assert_close((new.left[1].weight, new.left[1].bias), alone.solve(1.0))


def test_a_sum_of_what_an_activation_changed_in_place_is_not_that_of_the_norm():
    model = randomised(Branches(lambda a, b: a + F.relu(b, inplace=True))).eval()
    result = groupnorm.calibrate_(groupnorm.convert(model, "gn:2"), model, batches())
    assert set(result.unexplained) == {"left.1", "right.1", "left.1 in a sum"}


def test_linear_layers_are_changed_by_ridge_regression():
    model = randomised(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    ).eval()
    data = batches(8)
    new = groupnorm.convert(model, "gn:2")
    groupnorm.calibrate_(new, model, data, linear=False)
    features = torch.cat([new[:4](batch) for batch in data])
    inputs = torch.cat([features, torch.ones(len(features), 1)], 1)
    gram = inputs.T @ inputs
    pull = RIDGE * gram.diagonal().mean() * torch.eye(289)
    change = torch.linalg.solve(gram + pull, inputs.T @ (torch.cat([model(b) for b in data]) - new[4](features)))
    weight, bias = new[4].weight + change[:-1].T, new[4].bias + change[-1]
    again = groupnorm.convert(model, "gn:2")
    groupnorm.calibrate_(again, model, data)
    torch.testing.assert_close(again[4].weight, weight)
    torch.testing.assert_close(again[4].bias, bias)
    assert torch.equal(model[4].weight, groupnorm.convert(model, "gn:2")[4].weight)


@pytest.mark.parametrize("kind", ["BatchNormAct2d", "FrozenBatchNormAct2d", "GroupNormAct"])
def test_norms_are_fitted_before_their_activation(kind):
    import timm.layers.norm_act as norms

    options = {"num_groups": 4} if kind == "GroupNormAct" else {}
    old = getattr(norms, kind)(8, act_layer=nn.SiLU, **options)
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), old)).eval()
    new, data = groupnorm.convert(model, "gn:2"), batches()
    groupnorm.calibrate_(new, model, data)
    old.act = nn.Identity()
    fit = ChannelFit(8, data[0].device)
    fit.add(F.group_norm(model[0](torch.cat(data)), 2, eps=1e-5), model(torch.cat(data)))
    torch.testing.assert_close((new[1].weight, new[1].bias), fit.solve(1.0))


def test_a_batch_norm_without_running_statistics_is_fitted_before_its_activation():
    import timm.layers.norm_act as norms

    old = norms.BatchNormAct2d(8, act_layer=nn.SiLU, track_running_stats=False)
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), old)).eval()
    new, data = groupnorm.convert(model, "gn:2"), batches(1)
    groupnorm.calibrate_(new, model, data)
    old.act = nn.Identity()
    fit = ChannelFit(8, data[0].device)
    fit.add(F.group_norm(model[0](data[0]), 2, eps=1e-5), model(data[0]))
    torch.testing.assert_close((new[1].weight, new[1].bias), fit.solve(1.0))


def test_modes_hooks_and_the_original_stay_and_undo_gives_back_every_bit():
    model = randomised(nn.Sequential(plain(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))
    new = groupnorm.convert(model, "gn:2").train()
    new[0][0].eval()
    states = [copy.deepcopy(m.state_dict()) for m in (model, new)]
    done = []
    result = groupnorm.calibrate_(new, model, [(x, None) for x in batches(3)], progress=done.append)
    assert done == list(range(1, 10))
    assert [m.training for m in new.modules()] == [True, True, False, True, True, True, True, True]
    assert model.training
    assert not any(m._forward_hooks for m in (*new.modules(), *model.modules()))
    assert all(p.grad is None and p.requires_grad for p in new.parameters())
    assert all(torch.equal(states[0][k], v) for k, v in model.state_dict().items())
    assert not torch.equal(states[1]["3.weight"], new[3].weight)
    result.undo()
    assert all(torch.equal(states[1][k], v) for k, v in new.state_dict().items())


def test_a_channel_that_is_constant_gets_the_mean():
    model = plain().eval()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = 0  # all of the first group
    new, data = groupnorm.convert(model, "gn:2"), batches()
    groupnorm.calibrate_(new, model, data)
    torch.testing.assert_close(new(data[0])[:, :4], model(data[0])[:, :4])
    assert new[1].weight.isfinite().all()


def test_what_cannot_be_fitted_is_told():
    model = plain()
    with pytest.raises(ArgumentError, match="data has no batches; expected some inputs"):
        groupnorm.calibrate_(groupnorm.convert(model), model, [])
    with pytest.raises(ArgumentError, match="passes=0; expected at least 1"):
        groupnorm.calibrate_(groupnorm.convert(model), model, batches(), passes=0)
    with pytest.raises(ConversionError, match=r"no norms to fit; expected a model and what groupnorm\.convert\(\)"):
        groupnorm.calibrate_(model, model, batches())
    with pytest.raises(ConversionError, match="BatchRenorm has statistics of batches: recompute those"):
        groupnorm.calibrate_(groupnorm.convert(model, "brn"), model, batches())
    with pytest.raises(ConversionError, match="FrozenBatchNorm has statistics of an earlier training, which stay"):
        groupnorm.calibrate_(groupnorm.convert(model, "frozen"), model, batches())
    with pytest.raises(ConversionError, match="ContinualNorm is no norm of groupnorm with statistics of the sample"):
        groupnorm.calibrate_(groupnorm.convert(model, "cn"), model, batches())
    with pytest.raises(ArgumentError, match="converted model is on meta and the original on cpu; expected both on one"):
        groupnorm.calibrate_(groupnorm.convert(model).to("meta"), model, batches())
    bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8)).double()
    result = groupnorm.calibrate_(groupnorm.convert(bare), bare, batches())
    assert result.left == {"1": "GroupNorm has no scale and shift to fit"}


class OddBatchNorm(nn.BatchNorm2d):
    """A norm that no rule knows."""


def test_a_norm_that_no_rule_knows_is_left():
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), OddBatchNorm(8), nn.BatchNorm2d(8)))
    result = groupnorm.calibrate_(groupnorm.convert(model, where="2"), model, batches())
    assert set(result.unexplained) == {"2"}
    assert set(result.left) == {"1"}
    assert result.left["1"].endswith("OddBatchNorm is a norm that no rule knows")


class Squared(nn.Module):
    def forward(self, x):
        return x**2


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_scales_and_shifts_that_are_computed_are_left(name):
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)))
    new = groupnorm.convert(model, "gn:2")
    parametrize.register_parametrization(new[1], name, Squared())
    before = copy.deepcopy(new[1].state_dict())
    result = groupnorm.calibrate_(new, model, batches())
    assert set(result.unexplained) == {"2"}
    assert result.left == {
        "1": f"its {name} is computed, as by a parametrization, and cannot be set: remove that before"
    }
    assert all(torch.equal(before[key], value) for key, value in new[1].state_dict().items())


def test_parameters_of_several_layers_are_left():
    model = randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)),
        )
    )
    model[3].bias = model[1].bias
    model[8].weight = model[6].weight
    new = groupnorm.convert(model, "gn:2")
    before = copy.deepcopy(new.state_dict())
    result = groupnorm.calibrate_(new, model, batches())
    assert set(result.unexplained) == {"2"}
    assert result.left == {
        "1": "its bias is that of 3 too, and a fit for one is none for the other",
        "3": "its bias is that of 1 too, and a fit for one is none for the other",
        "6": "its weight is that of 8 too, and a fit for one is none for the other",
        "8": "its weight is that of 6 too, and a fit for one is none for the other",
    }
    changed = {key for key, value in new.state_dict().items() if not torch.equal(before[key], value)}
    assert changed == {"2.weight", "2.bias", "7.weight", "7.bias"}


def test_parametrized_linear_layers_are_left():
    model = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    new = groupnorm.convert(model, "gn:1")
    parametrize.register_parametrization(new[3], "weight", Squared())
    result = groupnorm.calibrate_(new, model, batches())
    assert result.left.keys() == {"3"}


def classifier():
    model = nn.Sequential(plain(), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    return randomised(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_told_and_nothing_is_changed(value):
    model, data = classifier(), batches()
    new = groupnorm.convert(model, "gn:2")
    before = copy.deepcopy(new.state_dict())
    data[2][1, 0, 3, 3] = value
    with pytest.raises(
        ArgumentError, match=r"norm '0\.1' meets values that are not finite in batch 3; expected finite"
    ):
        groupnorm.calibrate_(new, model, data)
    assert all(torch.equal(before[key], v) for key, v in new.state_dict().items())


def test_inputs_of_linear_layers_that_are_not_finite_are_told():
    class Poles(nn.Module):
        def forward(self, x):
            return x / 0

    model = randomised(nn.Sequential(nn.BatchNorm2d(3), Poles(), nn.Flatten(), nn.Linear(192, 2)))
    new = groupnorm.convert(model, "gn:1")
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ArgumentError, match=r"linear layer '3' meets values that are not finite in batch 1"):
        groupnorm.calibrate_(new, model, batches())
    assert all(torch.equal(before[key], v) for key, v in new.state_dict().items())


def test_a_scale_that_overflows_in_half_precision_is_told():
    model = nn.Sequential(nn.BatchNorm2d(3)).half()
    new = groupnorm.convert(model, "gn:1")
    nn.init.constant_(model[0].weight, 6e4)
    nn.init.constant_(model[0].running_var, 0.5)
    with pytest.raises(ArgumentError, match="norm '0' meets values that are not finite in batch 1"):
        groupnorm.calibrate_(new, model, [torch.randn(4, 3, 8, 8).half()])


@pytest.mark.parametrize("at", [2, 5, 9])
def test_whatever_stops_it_every_parameter_is_as_before(at):
    """In the first pass, in the second, and at the linear layers."""
    model = classifier()
    new = groupnorm.convert(model, "gn:2")
    before = copy.deepcopy(new.state_dict())

    def stop(done):
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        groupnorm.calibrate_(new, model, batches(), progress=stop)
    with pytest.raises(RuntimeError, match="expected input"):
        groupnorm.calibrate_(new, model, [*batches(), torch.randn(2, 5, 8, 8).double()])
    assert all(torch.equal(before[key], v) for key, v in new.state_dict().items())
    assert not any(m._forward_hooks for m in (*new.modules(), *model.modules()))


@pytest.mark.parametrize("kind", ["rms", "frn", "frozen", "evonorm-s0", "bcn", "gn:4"])
def test_originals_of_every_kind_are_fitted_before_the_activation_in_them(kind):
    import timm.layers.norm_act as norms

    old = norms.BatchNormAct2d(8, act_layer=nn.SiLU, inplace=False)
    model = randomised(groupnorm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), old).double(), kind)).eval()
    new, data = groupnorm.convert(model, "gn:2"), batches()
    groupnorm.calibrate_(new, model, data)
    model[1].act = nn.Identity()
    fit = ChannelFit(8, data[0].device)
    fit.add(F.group_norm(model[0](torch.cat(data)), 2, eps=new[1].eps), model(torch.cat(data)))
    torch.testing.assert_close((new[1].weight, new[1].bias), fit.solve(1.0))


def test_an_activation_of_its_own_kind_is_what_the_new_norm_comes_near():
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), groupnorm.norm_layer("frn")(8))).eval()
    new, data = groupnorm.convert(model, "gn:2"), batches()
    groupnorm.calibrate_(new, model, data)
    fit = ChannelFit(8, data[0].device)
    fit.add(F.group_norm(model[0](torch.cat(data)), 2, eps=new[1].eps), model(torch.cat(data)))
    torch.testing.assert_close((new[1].weight, new[1].bias), fit.solve(1.0))
    own = copy.deepcopy(model)
    own[1].eps = 0.5
    with pytest.raises(ConversionError, match="activation is of its own kind, and what comes before it is not seen"):
        groupnorm.calibrate_(own, model, data)


def test_an_activation_that_cannot_be_looked_behind_is_told():
    class Activated(groupnorm.nn.RMSNorm):
        def forward(self, x):
            return torch.relu(super().forward(x))

    @groupnorm.convert.rule(Activated)
    def known(module):
        return groupnorm.convert.Facts("rms", 8, module.eps, activation="relu")

    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8), nn.BatchNorm2d(8)))
    new = groupnorm.convert(model, "gn:2")
    new[1].bias = nn.Parameter(torch.zeros(8).double())
    assert "the original applies relu within its forward" in groupnorm.calibrate_(new, model, batches()).left["1"]


def test_an_activated_output_is_not_fitted_to_a_sum():
    """Scale and shift come before the activation, the sum after it."""
    import timm.layers.norm_act as norms

    model = Branches(torch.add)
    model.right[1] = norms.BatchNormAct2d(8, inplace=False)
    model = randomised(model).eval()
    new, data = groupnorm.convert(model, "gn:2"), batches()
    result = groupnorm.calibrate_(new, model, data)
    assert set(result.unexplained) == {"left.1", "right.1", "left.1 in a sum"}


class ByKeyword(nn.Module):
    """Calls its layers by keyword."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(input=self.bn(input=x).mean((2, 3)))


def test_layers_called_by_keyword_are_fitted():
    model = randomised(ByKeyword())
    apart = nn.Sequential(model.bn, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
    new, other, data = groupnorm.convert(model, "gn:1"), groupnorm.convert(apart, "gn:1"), batches()
    groupnorm.calibrate_(new, model, data)
    groupnorm.calibrate_(other, apart, data)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(new.bn, name), getattr(other[0], name))
        torch.testing.assert_close(getattr(new.fc, name), getattr(other[3], name))


def test_inputs_may_be_several_and_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, a, b):
            return self.bn(a + b)

    model, (a, b) = randomised(Two()), batches(2)
    found = []
    for batch in ([[a, b], torch.zeros(6)], {"a": a, "b": b}, ({"a": a, "b": b}, None)):
        new = groupnorm.convert(model, "gn:1")
        groupnorm.calibrate_(new, model, [batch])
        found.append(new.bn.weight)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with pytest.raises(ArgumentError, match=r"data is one Tensor of shape \(6, 3, 8, 8\); expected batches"):
        groupnorm.calibrate_(new, model, a)


def test_what_does_not_learn_is_fitted_too():
    model = plain()
    new = groupnorm.convert(model, "gn:2").requires_grad_(False)
    before = new[1].weight.clone()
    groupnorm.calibrate_(new, model, batches())
    assert not torch.equal(before, new[1].weight)


def test_a_model_without_parameters_has_nothing_to_fit():
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False, track_running_stats=False))
    with pytest.raises(ConversionError, match="GroupNorm has no scale and shift to fit"):
        groupnorm.calibrate_(groupnorm.convert(model, "gn:1"), model, [torch.randn(2, 3, 4, 4)])


def test_a_network_on_digits_keeps_its_accuracy_without_training():
    """Within 4 points of the batch norm network, where copied scales and shifts are useless."""
    digits = load("digits")
    model = resnet_tiny(groupnorm.norm_layer("bn"), 1, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images, labels = digits.batch(digits.train_images), digits.train_labels
    for _ in range(3):
        for chosen in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()

    def error(network):
        wrong = network.eval()(digits.batch(digits.val_images)).argmax(1) != digits.val_labels
        return 100 * float(wrong.double().mean())

    original = error(model)
    copied = groupnorm.convert(model, "gn:4")
    calibrated = copy.deepcopy(copied)
    groupnorm.calibrate_(calibrated, model, images[:512].split(64))
    assert original < 10
    assert error(copied) > original + 20
    assert error(calibrated) < original + 4


def test_a_data_loader_is_gone_through_again_and_a_generator_is_held():
    model, data = plain().eval(), batches()

    class Loader:
        def __init__(self):
            self.begun = 0

        def __len__(self):
            return len(data)

        def __iter__(self):
            self.begun += 1
            return iter(data)

    loader = Loader()
    fitted = [groupnorm.convert(model, "gn:2") for _ in range(3)]
    for new, given in zip(fitted, (data, loader, (x for x in data)), strict=True):
        groupnorm.calibrate_(new, model, given)
    assert loader.begun >= 2
    for new in fitted[1:]:
        assert torch.equal(new[1].weight, fitted[0][1].weight)
    with pytest.raises(ArgumentError, match="data has no batches"):
        groupnorm.calibrate_(fitted[0], model, iter(()))


class Chooses(nn.Module):
    """Calls its head, or gives it rows, as often as what it computed demands: more with a group norm."""

    more = 1

    def __init__(self, rows=False, norm_in_head=False):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.BatchNorm1d(8) if norm_in_head else nn.Linear(8, 8)
        self.rows = rows

    def forward(self, images, targets=None):
        assert isinstance(images, list), "expected a list of images"
        x = self.backbone(torch.stack(images))
        times = 2 + self.more * isinstance(self.backbone[1], nn.GroupNorm)
        if self.rows:
            return self.head(torch.cat([x.mean((2, 3))] * times))
        x = x.mean((2, 3))
        for _ in range(times):
            x = self.head(x)
        return x


def lists(count=2):
    return [([*images], None) for images in batches(count)]


def one_argument(data):
    return [((images,), targets) for images, targets in data]


def test_a_linear_layer_that_is_called_more_often_is_fitted_to_the_calls_of_both():
    model = randomised(Chooses()).eval()
    new, as_often = groupnorm.convert(model, "gn:2"), groupnorm.convert(model, "gn:2")
    as_often.more = 0
    data = one_argument(lists())
    groupnorm.calibrate_(new, model, data)
    groupnorm.calibrate_(as_often, model, data)
    assert torch.equal(new.head.weight, as_often.head.weight)
    assert not torch.equal(new.head.weight, model.head.weight)


@pytest.mark.parametrize("norm_in_head", [False, True])
def test_a_layer_that_gets_other_inputs_in_both_is_told_and_nothing_is_changed(norm_in_head):
    model = randomised(Chooses(True, norm_in_head)).eval()
    new = groupnorm.convert(model, "gn:2")
    before = copy.deepcopy(new.state_dict())
    layer = "norm" if norm_in_head else "linear layer"
    with pytest.raises(
        ConversionError,
        match=rf"{layer} 'head' gives \(18, 8\) in the converted .*\(12, 8\) in the original for batch 1.*backbone",
    ):
        groupnorm.calibrate_(new, model, one_argument(lists()))
    assert all(torch.equal(before[key], v) for key, v in new.state_dict().items())
    groupnorm.calibrate_(new.backbone, model.backbone, batches())


def test_a_list_means_the_same_everywhere():
    """Positional arguments; a list within another is one argument."""
    model = randomised(Chooses()).eval()
    new, images = groupnorm.convert(model, "gn:2"), list(batches(1)[0])
    for run in (groupnorm.calibrate_, lambda *_: groupnorm.recompute_statistics_(model, [(images, None)])):
        with pytest.raises(ConversionError, match=r"on batch 1 failed: .*within another it is one argument, as \(\[im"):
            run(new, model, [(images, None)])
    with pytest.raises(ConversionError, match=r"sample_input .*within another, as \[\[image\]\] for a detector"):
        groupnorm.plan(model, "gn", sample_input=images)
    assert groupnorm.plan(model, "gn", sample_input=[images]).of("replace")
    assert groupnorm.recompute_statistics_(model, [([images], None)]) == ["backbone.1"]
    plain_model, (a,) = plain(), batches(1)
    assert groupnorm.plan(plain_model, "gn:2", sample_input=[a]) == groupnorm.plan(plain_model, "gn:2", sample_input=a)


def test_layers_that_the_data_do_not_reach_are_left():
    class Part(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    model = randomised(Part(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 3)))
    result = groupnorm.calibrate_(groupnorm.convert(model, "gn:1"), model, batches())
    assert result.unexplained.keys() == {"0"}
    assert result.left.keys() == {"1", "2"}
    assert all(reason.endswith("the data do not reach it") for reason in result.left.values())


def test_it_shows_itself_as_a_table():
    result = Calibration({"layer.bn": 0.0523, "bn<1>": 0.5}, {"fc": "it is shared"})
    assert repr(result).splitlines() == [
        "2 norms fitted, 1 left as they are",
        "  layer.bn  5.2 % unexplained",
        "  bn<1>     50.0 % unexplained",
        "  fc        left as it is: it is shared",
    ]
    assert '<td style="text-align: left">bn&lt;1&gt;</td>' in result._repr_html_()
    assert repr(Calibration()) == "0 norms fitted, 0 left as they are"
