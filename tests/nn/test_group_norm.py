"""The module: torch.nn.GroupNorm to every tool, and the theorems that make group norm worth having."""

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agreement import Case, assert_agrees, make_case, run
from groupnorm import GroupNorm
from groupnorm.errors import SingleElementError
from groupnorm.functional import ACTIVATIONS
from groupnorm.sets import group_set
from tolerances import summing

CONFIGURATIONS = [
    {},
    {"affine": False},
    {"bias": False},
    {"eps": 1e-3},
    {"dtype": torch.float64},
    {"device": "meta"},
]
by_configuration = pytest.mark.parametrize("kwargs", CONFIGURATIONS, ids=str)


def make_norm(case: Case, groups: int, activation: str | None = None) -> GroupNorm:
    """A layer that holds the parameters of the case."""
    norm = GroupNorm(groups, case.x.shape[1], dtype=case.x.dtype, activation=activation)
    norm.load_state_dict({"weight": case.weight, "bias": case.bias})
    return norm


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("shape", [(3, 12), (3, 12, 7), (2, 12, 5, 3), (2, 12, 3, 2, 4)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_training_and_evaluation_both_compute_the_definition(
    shape: tuple[int, ...], activation: str | None, training: bool
) -> None:
    case = make_case(shape)
    norm = make_norm(case, 3, activation).train(training)
    outcome = run(
        lambda x, w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, (x,)),
        case,
    )
    assert_agrees(outcome, case, group_set(3), activation=activation)


class TestDropIn:
    """What code written for torch.nn.GroupNorm relies on."""

    def test_it_is_a_torch_group_norm(self) -> None:
        assert isinstance(GroupNorm(4, 8), nn.GroupNorm)

    def test_positional_arguments_have_the_order_and_defaults_of_torch(self) -> None:
        ours = list(inspect.signature(GroupNorm).parameters.values())
        theirs = list(inspect.signature(nn.GroupNorm).parameters.values())
        assert [(p.name, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.kind) for p in theirs]
        defaults = {p.name: p.default for p in theirs if p.default is not p.empty}
        assert {p.name: p.default for p in ours if p.name in defaults} == defaults
        assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])

    @by_configuration
    def test_repr_is_torchs(self, kwargs: dict[str, object]) -> None:
        assert repr(GroupNorm(4, 8, **kwargs)) == repr(nn.GroupNorm(4, 8, **kwargs))

    def test_repr_names_the_activation(self) -> None:
        expected = repr(nn.GroupNorm(4, 8)).replace(")", ", activation=silu)")
        assert repr(GroupNorm(4, 8, activation="silu")) == expected

    @by_configuration
    def test_parameters_have_the_names_values_dtype_and_device_of_torchs(self, kwargs: dict[str, object]) -> None:
        ours, theirs = GroupNorm(4, 8, **kwargs), nn.GroupNorm(4, 8, **kwargs)
        assert list(ours._parameters) == list(theirs._parameters)
        for name, expected in theirs._parameters.items():
            parameter = getattr(ours, name)
            assert (parameter is None) == (expected is None)
            if expected is not None:
                assert (parameter.dtype, parameter.device) == (expected.dtype, expected.device)
                assert parameter.is_meta or torch.equal(parameter, expected)

    @pytest.mark.parametrize("kwargs", CONFIGURATIONS[:-1], ids=str)
    def test_state_dicts_load_strictly_both_ways(self, kwargs: dict[str, object]) -> None:
        case = make_case((2, 8, 3), dtype=kwargs.get("dtype", torch.float32))
        for source, target in ((GroupNorm, nn.GroupNorm), (nn.GroupNorm, GroupNorm)):
            a, b = source(4, 8, **kwargs), target(4, 8, **kwargs)
            with torch.no_grad():
                for parameter in a.parameters():
                    parameter.normal_()
            b.load_state_dict(a.state_dict(), strict=True)
            torch.testing.assert_close(b(case.x), a(case.x))

    def test_reset_parameters_restores_ones_and_zeros(self) -> None:
        norm = make_norm(make_case((2, 8)), 4)
        norm.reset_parameters()
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))

    def test_group_size_sets_the_groups(self) -> None:
        assert GroupNorm(num_channels=48, group_size=16).num_groups == 3

    def test_the_meta_device_computes_shapes(self) -> None:
        norm = GroupNorm(4, 8, device="meta", activation="relu")
        assert norm(torch.empty(2, 8, 3, device="meta")).shape == (2, 8, 3)
        assert not norm.to_empty(device="cpu").weight.is_meta

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_to_a_half_dtype_computes_in_it(self, dtype: torch.dtype) -> None:
        case = make_case((2, 12, 5), dtype=dtype)
        norm = make_norm(case.double(), 4, "silu").to(dtype)
        assert_agrees(norm(case.x), case, group_set(4), activation="silu")

    def test_cpu_autocast_keeps_the_dtype_that_torch_keeps(self) -> None:
        x = torch.randn(2, 8, 3)
        ours, theirs = GroupNorm(4, 8), nn.GroupNorm(4, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for value in (x, x.bfloat16()):
                assert ours(value).dtype == theirs(value).dtype

    def test_hooks_run(self) -> None:
        norm, seen = GroupNorm(4, 8), []
        norm.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        norm(torch.randn(2, 8, 3))
        assert seen == [(2, 8, 3)]


class TestCopies:
    """Copies that are made by tools."""

    @pytest.mark.parametrize(
        "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
    )
    def test_a_copy_computes_the_same_with_parameters_of_its_own(
        self, duplicate: Callable[[nn.Module], nn.Module]
    ) -> None:
        case = make_case((2, 12, 5))
        norm = make_norm(case, 4, "silu")
        copied = duplicate(norm)
        assert torch.equal(copied(case.x), norm(case.x))
        assert repr(copied) == repr(norm)
        assert copied.weight is not norm.weight


class TestTransforms:
    """Compilers and function transforms."""

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_it_compiles_to_one_graph(self, backend: str) -> None:
        torch.compiler.reset()
        case = make_case((2, 12, 5))
        norm = make_norm(case, 4, "silu")
        compiled = torch.compile(norm, fullgraph=True, backend=backend)
        inputs = Case(case.x, None, None, case.upstream)
        outcome, expected = (run(lambda x, w, b, f=f: f(x), inputs) for f in (compiled, norm))
        torch.testing.assert_close(outcome.y, expected.y)
        torch.testing.assert_close(outcome.dx, expected.dx)

    def test_it_compiles_once_for_every_size(self) -> None:
        torch.compiler.reset()
        norm = GroupNorm(4, 8)
        compiled = torch.compile(norm, fullgraph=True, backend="eager", dynamic=True)
        for n, h in ((2, 3), (3, 4), (5, 7)):
            x = torch.randn(n, 8, h, h + 1)
            torch.testing.assert_close(compiled(x), norm(x))

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_it_exports_with_any_batch_and_size(self, training: bool) -> None:
        norm = GroupNorm(4, 8, activation="relu").train(training)
        dynamic = torch.export.Dim.DYNAMIC
        program = torch.export.export(
            norm, (torch.randn(2, 8, 4, 4),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
        )
        x = torch.randn(5, 8, 7, 6)
        assert torch.equal(program.module()(x), norm(x))

    def test_it_traces_with_fx(self) -> None:
        """As torch.nn.GroupNorm, which is a leaf to torch.fx; torchvision's feature extraction traces so."""
        model = nn.Sequential(nn.Conv2d(3, 8, 3), GroupNorm(4, 8, activation="relu"))
        traced = torch.fx.symbolic_trace(model)
        x = torch.randn(2, 3, 5, 5)
        assert torch.equal(traced(x), model(x))

    def test_vmap_gives_per_sample_gradients(self) -> None:
        """What differential privacy needs: gradients of each sample's loss, in one call."""
        case = make_case((4, 12, 5))
        norm = make_norm(case, 4, "silu")
        parameters = dict(norm.named_parameters())

        def loss(parameters: dict[str, Tensor], x: Tensor, upstream: Tensor) -> Tensor:
            return (torch.func.functional_call(norm, parameters, (x[None],)) * upstream).sum()

        mapped = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, case.x, case.upstream)
        for i in range(4):
            alone = torch.func.grad(loss)(parameters, case.x[i], case.upstream[i])
            for name in alone:
                torch.testing.assert_close(mapped[name][i], alone[name])


class TestSingleElement:
    """A group of one element erases its input."""

    @pytest.mark.parametrize("N", [1, 2, 8])
    @pytest.mark.parametrize("shape", [(12,), (12, 1), (12, 1, 1)], ids=str)
    def test_training_refuses_it_at_every_batch_size(self, N: int, shape: tuple[int, ...]) -> None:
        with pytest.raises(SingleElementError):
            GroupNorm(12, 12)(torch.randn(N, *shape))

    @pytest.mark.parametrize("N", [1, 2, 8])
    def test_evaluation_computes_the_bias(self, N: int) -> None:
        case = make_case((N, 12, 1, 1))
        norm = make_norm(case, 12).eval()
        assert_agrees(norm(case.x), case, group_set(12))
        assert_agrees(case.bias.view(1, 12, 1, 1).expand_as(case.x), case, group_set(12))

    @pytest.mark.parametrize("shape", [(2, 12, 1, 1), (2, 6, 2, 1)], ids=str)
    def test_two_elements_are_enough(self, shape: tuple[int, ...]) -> None:
        GroupNorm(6, shape[1])(torch.randn(shape))

    def test_an_empty_batch_trains(self) -> None:
        norm = GroupNorm(4, 12, activation="relu")
        norm(torch.randn(0, 12, 3)).sum().backward()
        assert not norm.weight.grad.any()


def accumulated(model: nn.Module, x: Tensor, target: Tensor, chunks: int) -> list[Tensor]:
    """Gradients of the mean squared error, summed over equal chunks of the batch."""
    model.zero_grad()
    for x_part, target_part in zip(x.chunk(chunks), target.chunk(chunks), strict=True):
        (F.mse_loss(model(x_part), target_part) / chunks).backward()
    return [p.grad.clone() for p in model.parameters()]


def small_model(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 5)).double()


class TestTheorems:
    """Why a norm should not look at the batch."""

    @pytest.fixture
    def batch(self) -> tuple[Tensor, Tensor]:
        return torch.randn(8, 3, 5, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)

    def test_gradients_are_the_same_for_a_batch_of_8_and_two_of_4(self, batch: tuple[Tensor, Tensor]) -> None:
        model = small_model(GroupNorm(4, 12))
        whole, parts = (accumulated(model, *batch, chunks) for chunks in (1, 2))
        bound = summing(8 * 25 * 12, torch.float64)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=bound * max(a.abs().max().item(), 1))

    def test_gradients_of_batch_norm_are_not(self, batch: tuple[Tensor, Tensor]) -> None:
        model = small_model(nn.BatchNorm2d(12))
        whole, parts = (accumulated(model, *batch, chunks) for chunks in (1, 2))
        assert max((a - b).abs().max().item() for a, b in zip(whole, parts, strict=True)) > 1e-3

    def test_a_layer_forward_sees_a_sample_alone_bit_for_bit(self, batch: tuple[Tensor, Tensor]) -> None:
        norm = GroupNorm(1, 3).double()
        x, _ = batch
        assert torch.equal(norm(x)[2:3], norm(x[2:3]))

    def test_a_tiny_model_learns(self, batch: tuple[Tensor, Tensor]) -> None:
        model = small_model(GroupNorm(4, 12, activation="silu"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.mse_loss(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 4
        norm = model[1]
        assert not torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert not torch.equal(norm.bias, torch.zeros_like(norm.bias))
