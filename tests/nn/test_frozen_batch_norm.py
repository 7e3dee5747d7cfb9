"""Frozen batch norm is batch norm in evaluation, always."""

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.errors import ArgumentError, ShapeError
from groupnorm.nn import FrozenBatchNorm
from tolerances import rounding


def trained() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6))
        norm.bias.copy_(torch.randn(6))
        norm.running_mean.copy_(torch.randn(6))
        norm.running_var.copy_(torch.rand(6) + 0.5)
    return norm


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("shape", [(1, 6), (2, 6, 5), (1, 6, 4, 3), (2, 6, 2, 3, 2)])
def test_it_computes_the_formula_in_both_modes_and_moves_nothing(mode: bool, shape: tuple[int, ...]) -> None:
    batch_norm, frozen = trained().double(), FrozenBatchNorm(6).double().train(mode)
    frozen.load_state_dict(batch_norm.state_dict())
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    of = [t.view(6, *[1] * (len(shape) - 2)) for t in batch_norm.state_dict().values() if t.dim()]
    weight, bias, mean, variance = of
    expected = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
    y = frozen(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=rounding(torch.float64, x, expected))
    upstream = torch.randn_like(y)
    (slope,) = torch.autograd.grad(y, x, upstream)
    wanted = upstream * weight / (variance + 1e-5).sqrt()
    torch.testing.assert_close(slope, wanted, rtol=0, atol=rounding(torch.float64, upstream, wanted))
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())


@pytest.mark.parametrize("x_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_parameters", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_statistics", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_and_statistics_may_have_dtypes_of_their_own(x_dtype, of_parameters, of_statistics) -> None:
    norm = FrozenBatchNorm(6)
    norm.load_state_dict(trained().state_dict())
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(of_statistics if name.startswith("running") else of_parameters)
    x = torch.randn(2, 6, 4, 3).to(x_dtype)
    y, expected = norm(x), FrozenBatchNorm(6).double()
    expected.load_state_dict(norm.state_dict())
    wanted = expected(x.double())
    assert y.dtype == x_dtype
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=rounding(x_dtype, x, wanted))
    y.backward(torch.randn_like(y))
    assert norm.weight.grad.dtype == of_parameters


def test_scale_and_shift_learn() -> None:
    norm, x = FrozenBatchNorm(6).double(), torch.randn(2, 6, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, x), [
        torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2)
    ])  # fmt: skip


def test_it_is_what_torchvisions_class_computes() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    theirs, batch_norm = FrozenBatchNorm2d(6), trained()
    theirs.load_state_dict(batch_norm.state_dict())
    ours = FrozenBatchNorm(6)
    ours.load_state_dict(batch_norm.state_dict())
    x = torch.randn(2, 6, 4, 4)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=rounding(torch.float32, x, expected))


def test_a_conversion_to_it_keeps_statistics_and_what_evaluation_gives() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), trained(), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    frozen = groupnorm.convert(model, "frozen")
    assert isinstance(frozen[1], FrozenBatchNorm)
    assert not groupnorm.plan(model, "frozen").rows[0].lost
    assert torch.equal(frozen.train()(x), model(x))
    back = groupnorm.convert(frozen, "bn")
    assert type(back[1]) is nn.BatchNorm2d
    assert torch.equal(back.eval()(x), model(x))


def test_frozen_norms_of_other_libraries_are_frozen_already() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    row = groupnorm.plan(nn.Sequential(FrozenBatchNorm2d(6)), "frozen").rows[0]
    assert (row.action, row.why) == ("skip", "is frozen already")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="num_features=0; expected at least 1"):
        FrozenBatchNorm(0)
    with pytest.raises(ShapeError, match="C=6: channels come second"):
        FrozenBatchNorm(6)(torch.randn(2, 5, 3, 3))


def test_what_looks_for_batch_norms_leaves_it_as_it_is() -> None:
    model = nn.Sequential(FrozenBatchNorm(6))
    model[0].load_state_dict(trained().state_dict())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.optim.swa_utils.update_bn([torch.randn(4, 6, 3, 3)], model.train())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model)[0] is model[0]


def test_state_dicts_go_both_ways_and_need_no_count() -> None:
    frozen, batch_norm, without_count = FrozenBatchNorm(6), nn.BatchNorm2d(6), trained().state_dict()
    frozen.load_state_dict(trained().state_dict())
    batch_norm.load_state_dict(frozen.state_dict())
    assert list(frozen.state_dict()) == list(batch_norm.state_dict())
    del without_count["num_batches_tracked"]
    frozen.load_state_dict(without_count)
    assert torch.equal(frozen.running_mean, without_count["running_mean"])


def test_resetting_it_gives_a_new_layer() -> None:
    frozen = FrozenBatchNorm(6)
    frozen.load_state_dict(trained().state_dict())
    frozen.reset_parameters()
    new = FrozenBatchNorm(6).state_dict()
    assert all(torch.equal(new[key], value) for key, value in frozen.state_dict().items())


@pytest.mark.parametrize(
    "old", [nn.GroupNorm(2, 6), nn.BatchNorm2d(6, track_running_stats=False), groupnorm.nn.BatchGroupNorm(6, 3)]
)
def test_a_norm_without_statistics_of_its_channels_cannot_be_frozen(old: nn.Module) -> None:
    row = groupnorm.plan(nn.Sequential(old), "frozen")["0"]
    assert row.action == "refuse"
    assert "has no running mean and variance of its 6 channels" in row.why
    assert "and frozen would use 0 and 1" in row.why
    assert "recompute_statistics_" in row.why
