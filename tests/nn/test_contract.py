"""What every layer of the catalog keeps, whatever it computes."""

import copy
import inspect
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from groupnorm import catalog, norm_layer
from groupnorm.errors import ArgumentError, RecomputationError
from groupnorm.nn import GroupNorm, SyncBatchNorm, set_total_steps, standardize_weight_, wire_
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
    # zeros, not None: DistributedDataParallel waits for every gradient
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


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


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "bn"])  # torch's own keeps what is not finite
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, "large"])
def test_training_goes_on_after_a_batch_that_is_not_finite(spec: str, dtype: torch.dtype, value: float | str) -> None:
    if spec in WITHOUT_HALF and dtype != torch.float32:
        return
    layer = trained(spec).to(dtype)
    bad = numbers(8, C, 5, 4, dtype=dtype)
    bad[0, 1, 0, 0] = torch.finfo(dtype).max / 2 if value == "large" else value  # of which the square overflows
    y = layer(bad.requires_grad_())
    y.backward(torch.randn_like(y))  # a loss scaler skips this step
    y = layer(numbers(8, C, 5, 4, dtype=dtype).requires_grad_())
    assert y.isfinite().all()
    (slope,) = torch.autograd.grad(y, next(iter(layer.parameters()), y), torch.randn_like(y))
    assert slope.isfinite().all()
    assert all(t.isfinite().all() for t in state(layer).values())
    layer.eval()
    x = numbers(8, C, 5, 4, dtype=dtype)
    assert layer(x).isfinite().all()
    if hasattr(layer, "running_mean"):
        assert (layer.running_mean.abs() < 1e3).all()


def norm_of(layer: nn.Module) -> nn.Module:
    """The norm of a layer that was built."""
    return layer[-1] if isinstance(layer, nn.Sequential) else layer


BATCH = [row.spec for row in catalog() if issubclass(row.layer, _BatchNorm)]
"""Layers that are batch norms to torch."""


@pytest.mark.parametrize("spec", BATCH)
def test_without_tracking_training_uses_the_batch_alone_and_moves_nothing(spec: str) -> None:
    layer = trained(spec)
    norm_of(layer).track_running_stats = False
    other = copy.deepcopy(layer)
    norm_of(other).running_mean.add_(1)
    norm_of(other).running_var.mul_(4)
    before, x, upstream = state(layer), numbers(8, C, 5, 4), numbers(8, C, 5, 4)
    actual = gradients(layer, x, upstream)
    torch.testing.assert_close(actual, gradients(other, x, upstream), rtol=0, atol=0)  # with other statistics
    torch.testing.assert_close(state(layer), before, rtol=0, atol=0)
    layer.eval()
    assert not torch.allclose(layer(x), other.eval()(x))  # evaluation uses what there is


@pytest.mark.parametrize("spec", BATCH)
def test_without_running_statistics_evaluation_uses_the_batch(spec: str) -> None:
    layer = trained(spec)
    norm = norm_of(layer)
    untracked = copy.deepcopy(layer)
    norm_of(untracked).track_running_stats = False
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(norm, name, None)
    x, upstream = numbers(8, C, 5, 4), numbers(8, C, 5, 4)
    expected = gradients(untracked, x, upstream)
    for mode in (True, False):
        torch.testing.assert_close(gradients(layer.train(mode), x, upstream), expected, rtol=0, atol=0)
    assert not any(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in state(layer))
    twin = copy.deepcopy(layer)
    assert twin.load_state_dict(layer.state_dict())
    assert_same(twin, pickle.loads(pickle.dumps(layer)))
    empty = torch.empty(0, C, 5, 4)
    assert layer(empty).shape == empty.shape


@pytest.mark.parametrize("spec", BATCH)
def test_functorch_takes_the_running_statistics_away_and_maps_over_batches(spec: str) -> None:
    layer = torch.func.replace_all_batch_norm_modules_(trained(spec))
    batches, parameters = numbers(3, 8, C, 5, 4), dict(layer.named_parameters())

    def run(x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,))

    expected = torch.stack([layer(x) for x in batches])
    actual = torch.func.vmap(run)(batches)
    torch.testing.assert_close(actual, expected, rtol=0, atol=rounding(torch.float32, batches, expected))


@pytest.mark.parametrize("spec", BATCH)
def test_without_a_count_the_statistics_stay_finite(spec: str) -> None:
    layer = trained(spec)
    norm = norm_of(layer)
    norm.num_batches_tracked = None
    for momentum in (0.1, None):
        norm.momentum = momentum
        before = state(layer)
        layer(numbers(8, C, 5, 4))
        after = state(layer)
        moved = not torch.equal(norm.running_var, before[next(k for k in before if k.endswith("running_var"))])
        assert moved == (momentum is not None)  # as in batch norm
        assert all(t.isfinite().all() for t in after.values())


@every_layer
def test_a_state_dict_that_lacks_the_layer_is_reported_and_changes_nothing(spec: str) -> None:
    layer = trained(spec)
    twin = copy.deepcopy(layer)
    wanted = {key for key in layer.state_dict() if not key.endswith("num_batches_tracked")}  # which torch fills in
    assert wanted <= set(layer.load_state_dict({}, strict=False).missing_keys)
    if wanted:
        with pytest.raises(RuntimeError, match="Missing key"):
            layer.load_state_dict({})
    assert_same(layer, twin)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "cbn"])  # it is wired by a forward pass
def test_a_layer_on_meta_takes_a_state_dict_by_assignment(spec: str) -> None:
    layer, other = trained(spec), build(spec, device="meta")
    other.load_state_dict(layer.state_dict(), assign=True)
    assert_same(copy.deepcopy(layer), other.to("cpu"))


OF_BATCH_NORM = [s for s in (*BATCH, "frozen") if s not in ("bgn", "cbn", "sn", "bcn", "bcn-micro", "evonorm-b0")]
"""Layers that take a state dict of batch norm as it is; the others have further parameters, or statistics of parts."""


@pytest.mark.parametrize("spec", OF_BATCH_NORM)
@pytest.mark.parametrize("old", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_a_layer_on_meta_takes_a_state_dict_of_batch_norm(spec: str, old: type[nn.Module]) -> None:
    layer, other = build(spec), build(spec, device="meta")
    given = old(C).state_dict()
    layer.load_state_dict(given)
    other.load_state_dict(given, assign=True)
    assert_same(layer, other.to("cpu"))


@pytest.fixture
def lone_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_layer
def test_sharded_parameters_train_alike(spec: str, lone_process: None) -> None:
    layer = trained(spec)
    sharded, x, upstream = copy.deepcopy(layer), numbers(8, C, 5, 4), numbers(8, C, 5, 4)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))  # refuses parameters without an axis
    y, *slopes = gradients(layer, x, upstream)
    actual = sharded(x.requires_grad_())
    actual.backward(upstream)
    torch.testing.assert_close(actual, y, rtol=0, atol=0)
    for slope, parameter in zip(slopes[1:], sharded.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), slope, rtol=0, atol=0)


LEARNING = list(dict.fromkeys(row.layer for row in catalog() if row.spec not in ("lrn", "lrn-within", "ws", "none")))
"""Classes of layers with parameters."""


@pytest.mark.parametrize("layer", LEARNING)
def test_skip_init_makes_every_layer_with_parameters(layer: type[nn.Module]) -> None:
    numbers = (4, 32) if layer is GroupNorm else (32,)
    made, expected = nn.utils.skip_init(layer, *numbers), layer(*numbers)
    assert repr(made) == repr(expected)
    shapes = [{name: tensor.shape for name, tensor in state(norm).items()} for norm in (made, expected)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("layer", [layer for layer in LEARNING if issubclass(layer, _BatchNorm)])
def test_positional_arguments_of_torchs_batch_norm_mean_the_same_or_are_refused(layer: type[nn.Module]) -> None:
    try:
        norm = layer(32, 1e-3, 0.3, True, False)
    except (TypeError, ArgumentError):
        return
    assert (norm.eps, norm.momentum, norm.affine, norm.track_running_stats) == (1e-3, 0.3, True, False)
    assert norm.running_mean is None


@pytest.mark.parametrize(("layer", "torchs"), [(GroupNorm, nn.GroupNorm), (SyncBatchNorm, nn.SyncBatchNorm)])
def test_what_stands_in_for_a_layer_of_torch_takes_its_arguments_by_position(layer, torchs) -> None:
    def positional(kind: type[nn.Module]) -> list[str]:
        parameters = inspect.signature(kind).parameters.values()
        return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert positional(layer) == positional(torchs)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_parameters_go_with_statistics_in_float32(spec: str, dtype: torch.dtype) -> None:
    """As what casts the parameters alone makes them, FSDP's mixed precision for one."""
    if spec in WITHOUT_HALF or spec == "bn":  # torch's own refuses it
        return
    layer = trained(spec)
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(dtype)
    exact = copy.deepcopy(layer).double()
    x, upstream = numbers(8, C, 5, 4, dtype=dtype), numbers(8, C, 5, 4, dtype=dtype)
    for mode in (True, False):
        y, *slopes = gradients(layer.train(mode), x, upstream)
        expected, *_ = gradients(exact.train(mode), x.double(), upstream.double())
        assert [t.dtype for t in (y, *slopes)] == [dtype] * (1 + len(slopes))
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=rounding(dtype, x, expected))
