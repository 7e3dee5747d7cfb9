"""What every layer of the catalog keeps, whatever it computes."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groupnorm import catalog, norm_layer
from groupnorm.errors import RecomputationError
from groupnorm.nn import set_total_steps, standardize_weight_, wire_
from groupnorm.nn.wiring import NeedsConvolution
from tolerances import rounding

SPECS = [row.spec for row in catalog()]
NOT_COMPILED = {"cbn": "it differentiates by the convolution's weight in its forward pass"}
"""Layers that break the graph of torch.compile, and why; their cards say so."""
WITHOUT_META = {"cbn": "its window holds derivatives of real numbers"}
"""Layers that do not run on the meta device, and why."""
WITHOUT_HALF = {"lrn": "torch's avg_pool3d has no half precision on a CPU"}
"""Layers that do not run in half precision on a CPU, and why; their cards say so."""

every_layer = pytest.mark.parametrize("spec", SPECS)
C = 16


def build(spec: str, channels: int = C, **options: object) -> nn.Module:
    """The layer of a row; with a convolution before it where it needs one."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1, **options)
    if spec == "ws":
        return standardize_weight_(convolution)
    norm = norm_layer(spec)(channels, **options)
    set_total_steps(norm, 30)  # so that the schedules move within a test
    if not isinstance(norm, NeedsConvolution):
        return norm
    model = nn.Sequential(convolution, norm)
    if options.get("device") != "meta":
        wire_(model, torch.randn(2, channels, 4, 4, dtype=options.get("dtype")))
    return model


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 1.5 + 0.5).to(dtype)


def trained(spec: str, **options: object) -> nn.Module:
    """A layer whose parameters and statistics have moved from where they start."""
    layer = build(spec, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for _ in range(3):
        layer(numbers(8, C, 5, 4, dtype=options.get("dtype", torch.float32)))
    return layer


def gradients(layer: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output, and the gradients by the input and all parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], upstream)]


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in layer.state_dict().items() if isinstance(value, Tensor)}


def assert_same(first: nn.Module, second: nn.Module) -> None:
    """Both compute the same in evaluation and in training, and go to the same state, bit for bit."""
    assert repr(first) == repr(second)
    x = numbers(8, C, 5, 4)
    for mode in (False, True):
        torch.testing.assert_close(first.train(mode)(x), second.train(mode)(x), rtol=0, atol=0)
    torch.testing.assert_close(state(first), state(second), rtol=0, atol=0)


@every_layer
def test_state_dict_round_trip(spec: str) -> None:
    layer, other = trained(spec), build(spec)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(layer, other)


@every_layer
def test_deepcopy_and_pickle(spec: str) -> None:
    layer = trained(spec)
    if spec != "ws":  # torch refuses to pickle a module with a parametrization; its state_dict is what is saved
        assert_same(pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer))
    assert_same(copy.deepcopy(layer), layer)


@every_layer
def test_repr_names_the_class_and_its_channels(spec: str) -> None:
    layer = build(spec)
    assert type(layer).__name__ in repr(layer)
    assert str(C) in repr(layer) or not list(layer.parameters())


@every_layer
def test_parameters_and_buffers_go_where_they_are_told(spec: str) -> None:
    layer = build(spec, device="meta", dtype=torch.float64)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert all(t.device.type == "meta" for t in tensors)
    assert all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())
    half = build(spec).to(torch.bfloat16)
    assert all(t.dtype == torch.bfloat16 for t in (*half.parameters(), *half.buffers()) if t.is_floating_point())


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in WITHOUT_META])
def test_the_meta_device_gives_shapes_without_numbers(spec: str) -> None:
    with torch.device("meta"):
        y = build(spec)(torch.empty(4, C, 6, 5))
    assert (y.shape, y.device.type) == ((4, C, 6, 5), "meta")


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_each_precision_is_float64_rounded(spec: str, dtype: torch.dtype, mode: str) -> None:
    layer = trained(spec).train(mode == "train").to(dtype)
    exact = copy.deepcopy(layer).double()
    x = numbers(8, C, 5, 4, dtype=dtype)
    if spec in WITHOUT_HALF and dtype != torch.float32:
        with pytest.raises(NotImplementedError):
            layer(x)
        return
    y, expected = layer(x), exact(x.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=rounding(dtype, x, expected))


@every_layer
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_empty_batch_passes_and_changes_nothing(spec: str, mode: str) -> None:
    layer = trained(spec).train(mode == "train")
    before = state(layer)
    x = torch.empty(0, C, 5, 4, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    after = state(layer)
    for counted in (before, after):
        counted.pop("num_batches_tracked", None)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


@every_layer
def test_channels_last_stays_channels_last(spec: str) -> None:
    layer = trained(spec)
    x = numbers(8, C, 5, 4)
    expected = copy.deepcopy(layer)(x)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=0, atol=rounding(torch.float32, x, expected))


@every_layer
def test_any_strides_give_the_same_numbers(spec: str) -> None:
    layer = trained(spec)
    x = numbers(8, C, 5, 4)
    expected = copy.deepcopy(layer)(x)
    wide = torch.full((8, C + 2, 4, 10), torch.nan)
    view = wide[:, 1:-1, :, ::2].mT
    view.copy_(x)
    assert not view.is_contiguous()
    y = layer(view)
    torch.testing.assert_close(y, expected, rtol=0, atol=rounding(torch.float32, x, expected))


@every_layer
def test_evaluation_changes_nothing_and_sees_each_sample_alone(spec: str) -> None:
    layer = trained(spec).eval()
    before = state(layer)
    x = numbers(8, C, 5, 4)
    together = layer(x)
    alone = torch.cat([layer(sample) for sample in x.split(1)])
    torch.testing.assert_close(alone, together, rtol=0, atol=rounding(torch.float32, x, together))
    torch.testing.assert_close(state(layer), before, rtol=0, atol=0)


@pytest.mark.parametrize("spec", NOT_COMPILED)
def test_a_layer_that_is_not_compiled_says_so_on_its_card(spec: str) -> None:
    assert "torch.compile" in (Path(__file__).parents[2] / "docs" / "cards" / f"{spec}.md").read_text()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in NOT_COMPILED])
def test_torch_compile_takes_the_whole_layer(spec: str) -> None:
    torch.compiler.reset()
    layer = trained(spec)
    for mode in (True, False):
        eager = copy.deepcopy(layer).train(mode)
        compiled = torch.compile(copy.deepcopy(layer).train(mode), fullgraph=True, backend="aot_eager_decomp_partition")
        for _ in range(2):  # a backward pass that reads a buffer again reads what this forward pass made of it
            x, upstream = numbers(8, C, 5, 4), numbers(8, C, 5, 4)
            expected, actual = (gradients(network, x, upstream) for network in (eager, compiled))
            for want, got in zip(expected, actual, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=rounding(torch.float32, x, want))
        torch.testing.assert_close(state(compiled._orig_mod), state(eager))


@every_layer
def test_a_few_training_steps_reduce_the_loss(spec: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, C, 3, bias=False), build(spec), nn.ReLU(), nn.Flatten(), nn.Linear(C * 36, 4))
    x, labels = numbers(32, 3, 8, 8), torch.arange(32) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


MEMORY = {"brn", "mabn", "pn", "cbn", "bcn-micro"}
"""Layers whose training output depends on what earlier batches left."""


@every_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_or_is_refused(spec: str, reentrant: bool) -> None:
    layer = trained(spec)
    twin = copy.deepcopy(layer)
    x, upstream = numbers(8, C, 5, 4), numbers(8, C, 5, 4)
    expected = gradients(layer, x, upstream)

    def train() -> None:
        checkpoint(twin, x.clone().requires_grad_(), use_reentrant=reentrant).backward(upstream)

    if spec in MEMORY:
        with pytest.raises(RecomputationError, match="leave this layer out of the checkpointed part"):
            train()
    else:
        train()
        for parameter, want in zip(twin.parameters(), expected[2:], strict=True):
            torch.testing.assert_close(parameter.grad, want, rtol=0, atol=rounding(torch.float32, x, want))


@every_layer
def test_training_goes_on_after_a_batch_that_is_not_finite(spec: str) -> None:
    layer = trained(spec)
    bad = numbers(8, C, 5, 4)
    bad[0, 1, 0, 0] = torch.inf
    layer(bad)  # a loss scaler skips this step
    for _ in range(3):
        y = layer(numbers(8, C, 5, 4))
    if spec != "cbn":  # whose window forgets it after as many iterations
        assert y.isfinite().all()
