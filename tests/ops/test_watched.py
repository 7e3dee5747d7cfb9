"""Whoever looks into the operations on a tensor sees those of ATen, and gets the same numbers."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from agreement import Case, assert_agrees, make_case
from backends import by_compiled_backend
from groupnorm import GroupNorm
from groupnorm.errors import BackendError
from groupnorm.functional import group_norm
from groupnorm.ops.watched import watched
from groupnorm.sets import group_set

LARGE = (2, 12, 40, 30)
"""Of a size that kernels would be taken for."""


def silu_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return group_norm(x, 4, w, b, activation="silu")


class Named(Tensor):
    """A subclass that does nothing."""


def test_an_ordinary_tensor_is_not_watched():
    assert not watched(torch.empty(2))
    assert not watched(nn.Parameter(torch.empty(2)), None)
    assert watched(torch.empty(2), torch.empty(2).as_subclass(Named))


@pytest.mark.parametrize("randomness", ["x", "x and parameters"])
def test_vmap_normalises_each_input_on_its_own(randomness):
    cases = [make_case(LARGE) for _ in range(3)]
    alike = randomness == "x"
    w, b = (torch.stack([getattr(c, n) for c in cases]) for n in ("weight", "bias"))
    dims = (0, None, None) if alike else (0, 0, 0)
    mapped = torch.vmap(silu_norm, in_dims=dims)(
        torch.stack([c.x for c in cases]), cases[0].weight if alike else w, cases[0].bias if alike else b
    )
    for case, y in zip(cases, mapped, strict=True):
        own = Case(case.x, cases[0].weight, cases[0].bias, case.upstream) if alike else case
        assert_agrees(y, own, group_set(4), activation="silu")


def test_per_sample_gradients():
    case = make_case(LARGE)

    def loss(w: Tensor, x: Tensor, dy: Tensor) -> Tensor:
        return (silu_norm(x[None], w, case.bias) * dy).sum()

    mapped = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(case.weight, case.x, case.upstream)
    for i in range(LARGE[0]):
        torch.testing.assert_close(mapped[i], torch.func.grad(loss)(case.weight, case.x[i], case.upstream[i]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # raised inside torch.func.jvp
def test_forward_mode_agrees_with_reverse_mode():
    case, tangent = make_case(LARGE), torch.randn(LARGE, dtype=torch.float64)
    _, forward = torch.func.jvp(lambda x: silu_norm(x, case.weight, case.bias), (case.x,), (tangent,))
    with forward_ad.dual_level():
        dual = silu_norm(forward_ad.make_dual(case.x, tangent), case.weight, case.bias)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, forward)
    x = case.x.requires_grad_()
    silu_norm(x, case.weight, case.bias).backward(case.upstream)
    torch.testing.assert_close((case.upstream * forward).sum(), (x.grad * tangent).sum())


def test_hessians():
    x = torch.randn(1, 4, 2, dtype=torch.float64)
    hessian = torch.func.hessian(lambda x: group_norm(x, 2, activation="silu").pow(3).sum())(x)
    plain = torch.func.hessian(lambda x: nn.functional.silu(torch.group_norm(x, 2)).pow(3).sum())(x)
    torch.testing.assert_close(hessian, plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_has_atens_group_norm():
    """Which counters of floating point operations and old exporters go by."""
    norm, x = GroupNorm(4, 12, activation="relu"), torch.randn(LARGE)
    traced = torch.jit.trace(norm, x)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert "aten::group_norm" in kinds
    assert "aten::relu" in kinds
    torch.testing.assert_close(traced(x), norm(x))


def test_operations_are_counted_as_those_of_torch():
    x = torch.randn(LARGE)
    counts = []
    for norm in (GroupNorm(4, 12), nn.GroupNorm(4, 12)):
        with FlopCounterMode(display=False) as counter:
            nn.Sequential(nn.Conv2d(12, 12, 3), norm)(x)
        counts.append(counter.get_flop_counts())
    assert counts[0] == counts[1]


def test_modes_see_atens_operation():
    seen = []

    class Look(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Look():
        group_norm(torch.randn(LARGE), 4)
    assert torch.ops.aten.native_group_norm.default in seen


def test_subclasses_stay():
    x = torch.randn(LARGE).as_subclass(Named)
    y = group_norm(x, 4, activation="relu")
    assert type(y) is Named
    torch.testing.assert_close(y.as_subclass(Tensor), group_norm(x.as_subclass(Tensor), 4, activation="relu"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # raised inside torch
@by_compiled_backend
def test_a_backend_that_is_named_says_that_it_cannot_be_looked_into(backend):
    x = torch.randn(LARGE)

    def norm(x: Tensor) -> Tensor:
        return group_norm(x, 4, backend=backend)

    with pytest.raises(BackendError, match="something looks into it"):
        torch.vmap(norm)(x[None])
    with pytest.raises(BackendError, match="something looks into it"), forward_ad.dual_level():
        norm(forward_ad.make_dual(x, x))
    with pytest.raises(BackendError, match="something looks into it"):
        norm(x.as_subclass(Named))
