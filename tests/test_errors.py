"""Every error: its class, the builtin that users of torch catch, and a message with value, expectation and remedy."""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from groupnorm import GroupNorm, convert_, norm_layer
from groupnorm.errors import (
    ArgumentError,
    BackendError,
    ConversionError,
    DeviceError,
    DivisibilityError,
    DtypeError,
    GroupNormError,
    OutOfMemoryError,
    RecomputationError,
    ShapeError,
    SingleElementError,
    UnallocatedError,
    UnknownNameError,
    WiringError,
    divisors,
)
from groupnorm.functional import group_norm, group_norm_statistics
from groupnorm.nn import BatchRenorm
from groupnorm.ops import cpu
from groupnorm.ops.spec import CONTIGUOUS, Spec
from groupnorm.sets import ALL, Blocks, SharedSet, group_set


@dataclass(frozen=True)
class Mistake:
    """What a user does, and what the error must be and say."""

    make: Callable[[], object]
    error: type[GroupNormError]
    value: str
    expected: str
    remedy: str
    builtin: type[Exception] = ValueError


def run_again(layer: torch.nn.Module) -> None:
    """Train with gradient checkpointing."""
    checkpoint(layer, torch.randn(2, 4, 3, requires_grad=True), use_reentrant=False).square().sum().backward()


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype
        return torch.nested.nested_tensor([torch.zeros(8, 3), torch.zeros(8, 2)])


def freed() -> torch.Tensor:
    x = torch.zeros(2, 8, 40, 40)
    x.untyped_storage().resize_(0)
    return x


def without_memory() -> None:
    """What a kernel raises that cannot allocate, as tests/ops/test_attacks.py provokes it."""
    raise cpu._out_of_memory(Spec("cpu", torch.float32, (2, 8, 40, 40), CONTIGUOUS, 4, None, False))


AVAILABLE = "triton" if cpu.unavailable() else "cpu"
X = torch.zeros(2, 8, 3)
MISTAKES = {
    "conversion: in place of a model that is a norm": Mistake(
        lambda: convert_(torch.nn.BatchNorm2d(8)),
        ConversionError,
        "the model itself is the norm",
        "expected a model that contains it",
        "use convert()",
        builtin=RuntimeError,
    ),
    "module: groups do not divide channels": Mistake(
        lambda: GroupNorm(32, 48),
        DivisibilityError,
        "num_channels=48 cannot be divided by num_groups=32",
        "expected a divisor of 48",
        "use num_groups from [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]",
    ),
    "module: group size does not divide channels": Mistake(
        lambda: GroupNorm(num_channels=30, group_size=16),
        DivisibilityError,
        "num_channels=30 cannot be divided by group_size=16",
        "expected a divisor of 30",
        "use group_size from [1, 2, 3, 5, 6, 10, 15, 30]",
    ),
    "module: no channels": Mistake(
        lambda: GroupNorm(32),
        ArgumentError,
        "num_channels=None",
        "expected the number of channels",
        "GroupNorm(32, 256)",
    ),
    "module: channels below 1": Mistake(
        lambda: GroupNorm(1, 0), ArgumentError, "num_channels=0", "at least 1", "GroupNorm(32, 256)"
    ),
    "module: neither groups nor group size": Mistake(
        lambda: GroupNorm(num_channels=64),
        ArgumentError,
        "num_groups=None, group_size=None",
        "expected exactly one of the two",
        "GroupNorm(32, 64) or GroupNorm(num_channels=64, group_size=2)",
    ),
    "module: both groups and group size": Mistake(
        lambda: GroupNorm(4, 64, group_size=16),
        ArgumentError,
        "num_groups=4, group_size=16",
        "expected exactly one of the two",
        "GroupNorm(32, 64) or GroupNorm(num_channels=64, group_size=2)",
    ),
    "module: groups below 1": Mistake(
        lambda: GroupNorm(0, 8), ArgumentError, "num_groups=0", "expected at least 1", "1 is layer norm"
    ),
    "module: negative groups": Mistake(
        lambda: GroupNorm(-4, 8), ArgumentError, "num_groups=-4", "expected at least 1", "1 is layer norm"
    ),
    "module: group size below 1": Mistake(
        lambda: GroupNorm(num_channels=8, group_size=0),
        ArgumentError,
        "group_size=0",
        "expected at least 1",
        "channel per group",
    ),
    "module: negative eps": Mistake(
        lambda: GroupNorm(4, 8, eps=-1e-5),
        ArgumentError,
        "eps=-1e-05",
        "expected a finite number >= 0",
        "default is 1e-5",
    ),
    "module: eps is not a number": Mistake(
        lambda: GroupNorm(4, 8, eps=float("nan")),
        ArgumentError,
        "eps=nan",
        "expected a finite number >= 0",
        "default is 1e-5",
    ),
    "module: unknown activation": Mistake(
        lambda: GroupNorm(4, 8, activation="rellu"),
        UnknownNameError,
        "unknown activation 'rellu'",
        "expected one of: relu, silu, gelu, gelu_tanh",
        "did you mean 'relu'?",
    ),
    "module: other channels than it was made for": Mistake(
        lambda: GroupNorm(4, 8)(torch.zeros(2, 12, 3)),
        ShapeError,
        "input has shape (2, 12, 3), 12 channels",
        "expected (N, C, *) with C=8",
        "channels come second",
    ),
    "module: no batch axis": Mistake(
        lambda: GroupNorm(4, 8)(torch.zeros(8)), ShapeError, "(8,), rank 1", "expected (N, C, *)", "x.unsqueeze(0)"
    ),
    "module: integers": Mistake(
        lambda: GroupNorm(4, 8)(X.long()),
        DtypeError,
        "torch.int64",
        "expected a floating point dtype",
        "x.float()",
        builtin=TypeError,
    ),
    "module: a single element per group in training": Mistake(
        lambda: GroupNorm(8, 8)(torch.zeros(2, 8, 1, 1)),
        SingleElementError,
        "input (2, 8, 1, 1) with num_groups=8 has 1 element per group",
        "expected at least 2",
        "use num_groups from [1, 2, 4], or larger feature maps",
    ),
    "module: a single element in all": Mistake(
        lambda: GroupNorm(1, 1)(torch.zeros(2, 1)),
        SingleElementError,
        "input (2, 1) with num_groups=1",
        "expected at least 2",
        "use larger feature maps",
    ),
    "function: no batch axis": Mistake(
        lambda: group_norm(torch.zeros(8), 4), ShapeError, "(8,), rank 1", "expected (N, C, *)", "x.unsqueeze(0)"
    ),
    "function: a scalar": Mistake(
        lambda: group_norm(torch.tensor(1.0), 4), ShapeError, "(), rank 0", "expected (N, C, *)", "x.unsqueeze(0)"
    ),
    "function: booleans": Mistake(
        lambda: group_norm(X.bool(), 4),
        DtypeError,
        "torch.bool",
        "expected a floating point dtype",
        "x.float()",
        builtin=TypeError,
    ),
    "function: groups do not divide channels": Mistake(
        lambda: group_norm(X, 3),
        DivisibilityError,
        "num_channels=8 cannot be divided by num_groups=3",
        "expected a divisor of 8",
        "use num_groups from [1, 2, 4, 8]",
    ),
    "function: groups below 1": Mistake(
        lambda: group_norm(X, 0), ArgumentError, "num_groups=0", "expected at least 1", "1 is layer norm"
    ),
    "function: a weight per group": Mistake(
        lambda: group_norm(X, 4, torch.ones(4)),
        ShapeError,
        "weight has shape (4,)",
        "expected (8,)",
        "one value for each channel of the input (2, 8, 3)",
    ),
    "function: a bias per element": Mistake(
        lambda: group_norm(X, 4, None, torch.ones(8, 3)),
        ShapeError,
        "bias has shape (8, 3)",
        "expected (8,)",
        "one value for each channel of the input (2, 8, 3)",
    ),
    "function: negative eps": Mistake(
        lambda: group_norm(X, 4, eps=-1.0),
        ArgumentError,
        "eps=-1.0",
        "expected a finite number >= 0",
        "default is 1e-5",
    ),
    "function: unknown activation": Mistake(
        lambda: group_norm(X, 4, activation="glu"),
        UnknownNameError,
        "unknown activation 'glu'",
        "expected one of: relu, silu, gelu, gelu_tanh",
        "did you mean 'gelu'?",
    ),
    "function: unknown backend": Mistake(
        lambda: group_norm(X, 4, backend="Triton"),
        UnknownNameError,
        "unknown backend 'Triton'",
        "expected one of: auto, reference, native, cpu, triton",
        "did you mean 'triton'?",
    ),
    "module: unknown backend": Mistake(
        lambda: GroupNorm(4, 8, backend="natve"),
        UnknownNameError,
        "unknown backend 'natve'",
        "expected one of: auto, reference, native, cpu, triton",
        "did you mean 'native'?",
    ),
    "function: a backend that cannot": Mistake(
        lambda: group_norm(torch.empty(2, 8, 3, device="meta"), 4, backend="cpu"),
        BackendError,
        "backend='cpu' cannot run this call: the input is on meta",
        "expected a call that it can run",
        "use backend='auto'",
        RuntimeError,
    ),
    "function: weight of another dtype": Mistake(
        lambda: group_norm(X.half(), 4, torch.ones(8, dtype=torch.bfloat16)),
        DtypeError,
        "weight has dtype torch.bfloat16 and the input torch.float16",
        "expected weight of torch.float16 or torch.float32",
        ".to(dtype)",
        TypeError,
    ),
    "function: residual of another shape": Mistake(
        lambda: group_norm(X, 4, residual=X[:1]),
        ShapeError,
        "residual has shape (1, 8, 3) and the input (2, 8, 3)",
        "expected the same",
        "use residual.expand_as(input)",
    ),
    "function: residual of another dtype": Mistake(
        lambda: group_norm(X, 4, residual=X.half()),
        DtypeError,
        "residual has dtype torch.float16 and the input torch.float32",
        "expected the same",
        "use residual.to(input)",
        TypeError,
    ),
    "function: out of another shape": Mistake(
        lambda: group_norm(X, 4, out=X[:, :4]),
        ShapeError,
        "out has shape (2, 4, 3) and the input (2, 8, 3)",
        "expected the same",
        "use out.expand_as(input)",
    ),
    "function: out with gradients": Mistake(
        lambda: group_norm(X, 4, torch.ones(8, requires_grad=True), out=torch.empty_like(X)),
        ArgumentError,
        "out= was given and an argument requires a gradient",
        "expected no gradient",
        "call it under torch.no_grad()",
    ),
    "function: statistics of another number of groups": Mistake(
        lambda: group_norm(X, 4, statistics=group_norm_statistics(X, 2)),
        ShapeError,
        "statistics have shapes (2, 2) and (2, 2)",
        "expected (2, 4), (N, G)",
        "num_groups=4",
    ),
    "function: statistics that are not a pair": Mistake(
        lambda: group_norm(X, 4, statistics=3),
        ArgumentError,
        "statistics is 3",
        "expected (mean, rstd)",
        "use group_norm_statistics(x, num_groups)",
    ),
    "function: a mask of numbers": Mistake(
        lambda: group_norm(X, 4, mask=torch.ones(2, 3)),
        DtypeError,
        "mask has dtype torch.float32",
        "expected torch.bool",
        "use mask.bool()",
        TypeError,
    ),
    "function: weight of type list": Mistake(
        lambda: group_norm(X, 4, [1.0] * 8),
        DtypeError,
        "weight is of type list",
        "expected a torch.Tensor",
        "use torch.as_tensor(weight)",
        TypeError,
    ),
    "function: bias of type numpy.ndarray": Mistake(
        lambda: group_norm(X, 4, None, np.ones(8)),
        DtypeError,
        "bias is of type numpy.ndarray",
        "expected a torch.Tensor",
        "use torch.as_tensor(bias)",
        TypeError,
    ),
    "function: residual of type float": Mistake(
        lambda: group_norm(X, 4, residual=1.0),
        DtypeError,
        "residual is of type float",
        "expected a torch.Tensor",
        "use torch.as_tensor(residual)",
        TypeError,
    ),
    "function: mask of type list": Mistake(
        lambda: group_norm(X, 4, mask=[[True]]),
        DtypeError,
        "mask is of type list",
        "expected a torch.Tensor",
        "use torch.as_tensor(mask)",
        TypeError,
    ),
    "function: mask of type numpy.ndarray": Mistake(
        lambda: group_norm(X, 4, mask=np.ones((2, 3), bool)),
        DtypeError,
        "mask is of type numpy.ndarray",
        "expected a torch.Tensor",
        "use torch.as_tensor(mask)",
        TypeError,
    ),
    "function: out of type numpy.ndarray": Mistake(
        lambda: group_norm(X, 4, out=X.numpy()),
        DtypeError,
        "out is of type numpy.ndarray",
        "expected a torch.Tensor",
        "use torch.as_tensor(out)",
        TypeError,
    ),
    "function: a scale on another device": Mistake(
        lambda: group_norm(X, 4, torch.ones(8, device="meta")),
        DeviceError,
        "weight is on meta",
        "expected the same",
        "use weight.to(input.device)",
        RuntimeError,
    ),
    "function: a sparse input": Mistake(
        lambda: group_norm(X.to_sparse(), 4),
        DtypeError,
        "input has layout torch.sparse_coo",
        "expected torch.strided",
        "input.to_dense()",
        TypeError,
    ),
    "function: an input of mkldnn": Mistake(
        lambda: group_norm(X.to_mkldnn(), 4),
        DtypeError,
        "input has layout torch._mkldnn",
        "expected torch.strided",
        "input.to_dense()",
        TypeError,
    ),
    "function: a nested input": Mistake(
        lambda: group_norm(nested(), 4),
        DtypeError,
        "input is a nested tensor",
        "expected a dense one",
        "torch.nested.to_padded_tensor(x, 0.0)",
        TypeError,
    ),
    "function: an input of 8 bits": Mistake(
        lambda: group_norm(X.to(torch.float8_e5m2), 4),
        DtypeError,
        "input has dtype torch.float8_e5m2",
        "expected one of torch.float32, torch.bfloat16",
        "x.bfloat16()",
        TypeError,
    ),
    "function: memory that was freed": Mistake(
        lambda: group_norm(freed(), 4, backend=AVAILABLE),
        UnallocatedError,
        "a tensor of shape (2, 8, 40, 40) and dtype torch.float32 has no memory",
        "expected 25600 elements",
        "call the norm before storage.resize_(0)",
        RuntimeError,
    ),
    "function: no memory left": Mistake(
        without_memory,
        OutOfMemoryError,
        "group norm of an input (2, 8, 40, 40) ran out of memory",
        "expected up to 0.1 MB",
        "use a smaller batch",
        RuntimeError,
    ),
    "function: an eps that is a boolean": Mistake(
        lambda: group_norm(X, 4, eps=True),
        ArgumentError,
        "eps=True",
        "expected a finite number >= 0",
        "the default is 1e-5",
    ),
    "function: a mask with channels": Mistake(
        lambda: group_norm(X, 4, mask=torch.ones(2, 8, 3, dtype=torch.bool)),
        ShapeError,
        "mask has shape (2, 8, 3)",
        "expected (2, 3)",
        "or 1 for any of them",
    ),
    "factory: unknown norm": Mistake(
        lambda: norm_layer("gn8"),
        UnknownNameError,
        "unknown norm 'gn8'",
        "expected one of: bn, gn, ln, in, ",
        "did you mean 'gn:8'?",
    ),
    "norm: not wired": Mistake(
        lambda: norm_layer("ws+gn")(32)(torch.randn(2, 32, 3)),
        WiringError,
        "GroupNorm was made by a factory with weight standardisation",
        "expected a wired model",
        "call groupnorm.wire_(model, example_input)",
        RuntimeError,
    ),
    "norm: run again in a backward pass": Mistake(
        lambda: run_again(BatchRenorm(4)),
        RecomputationError,
        "runs the forward pass of BatchRenorm again",
        "expected one forward pass",
        "leave this layer out of the checkpointed part",
        RuntimeError,
    ),
    "factory: unknown activation": Mistake(
        lambda: norm_layer("gn", activation="sillu"),
        UnknownNameError,
        "unknown activation 'sillu'",
        "expected one of: relu, silu, gelu, gelu_tanh",
        "did you mean 'silu'?",
    ),
    "factory: groups do not divide channels": Mistake(
        lambda: norm_layer("gn:32")(24),
        DivisibilityError,
        "num_channels=24 cannot be divided by num_groups=32",
        "expected a divisor of 24",
        "use num_groups from [1, 2, 3, 4, 6, 8, 12, 24]",
    ),
    "factory: the model wants an activation": Mistake(
        lambda: norm_layer("gn").func.__name__,  # the question of a timm model that wants both in one
        ArgumentError,
        "the factory names none",
        "expected the activation of the model",
        "norm_layer(spec, activation='relu')",
    ),
    "sets: no channel axis": Mistake(
        lambda: group_set(4).labels((8,)),
        ShapeError,
        "got shape (8,)",
        "expected (N, C, *positions)",
        "at least two axes",
    ),
    "sets: samples do not divide": Mistake(
        lambda: SharedSet(Blocks(size=2), ALL).labels((5, 8)),
        DivisibilityError,
        "samples=5 cannot be divided by size=2",
        "expected a divisor of 5",
        "use size from [1, 5]",
    ),
    "sets: channels do not divide": Mistake(
        lambda: group_set(3).labels((5, 8)),
        DivisibilityError,
        "channels=8 cannot be divided by count=3",
        "expected a divisor of 8",
        "use count from [1, 2, 4, 8]",
    ),
    "sets: positions do not divide": Mistake(
        lambda: SharedSet(ALL, ALL, Blocks(size=4)).labels((5, 8, 3, 3)),
        DivisibilityError,
        "positions=9 cannot be divided by size=4",
        "expected a divisor of 9",
        "use size from [1, 3, 9]",
    ),
    "sets: both count and size": Mistake(
        lambda: Blocks(2, 2), ArgumentError, "Blocks(count=2, size=2)", "expected exactly one of the two", "at least 1"
    ),
}
by_mistake = pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)


def raised(mistake: Mistake) -> GroupNormError:
    with pytest.raises(GroupNormError) as info:
        mistake.make()
    return info.value


@by_mistake
def test_an_error_has_its_own_class_and_is_the_builtin_that_users_catch(mistake: Mistake) -> None:
    error = raised(mistake)
    assert type(error) is mistake.error
    assert isinstance(error, mistake.builtin)


@by_mistake
def test_a_message_carries_the_value_the_expectation_and_the_remedy_in_this_order(mistake: Mistake) -> None:
    message = str(raised(mistake))
    places = [message.find(part) for part in (mistake.value, mistake.expected, mistake.remedy)]
    assert -1 not in places, message
    assert places == sorted(places), message


@by_mistake
def test_an_error_survives_the_way_home_from_a_worker(mistake: Mistake) -> None:
    error = raised(mistake)
    home = pickle.loads(pickle.dumps(error))
    assert vars(home) == vars(error)
    assert (type(home), str(home), home.args) == (type(error), str(error), error.args)


def test_every_class_of_error_is_tested() -> None:
    classes = {c for base in (GroupNormError, ArgumentError) for c in base.__subclasses__()}
    core = {c for c in classes if c.__module__ == "groupnorm.errors"}
    assert core == {mistake.error for mistake in MISTAKES.values()}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("bnn", "bn"), ("gn8", "gn:8"), ("gn:c", "gn:c16"), ("non", "none"), ("GN", "gn"), ("GN:8", "gn:8")],
)
def test_an_unknown_norm_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'"):
        norm_layer(name)


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(UnknownNameError) as info:
        norm_layer("xyzzy")
    assert "did you mean" not in str(info.value)


@given(st.integers(1, 2000))
def test_divisors_are_those_that_divide_in_rising_order(n: int) -> None:
    found = divisors(n)
    assert found == sorted(set(found))
    assert set(found) == {d for pair in ((d, n // d) for d in range(1, int(n**0.5) + 1) if n % d == 0) for d in pair}


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupNorm(4.0, 8),
        lambda: GroupNorm(True, 8),
        lambda: GroupNorm("4", 8),
        lambda: GroupNorm(4, 8.0),
        lambda: GroupNorm(num_channels=8, group_size=2.0),
        lambda: GroupNorm(4, 8, eps="1e-5"),
        lambda: GroupNorm(4, 8, eps=float("inf")),
        lambda: GroupNorm(4, 8, activation=["relu"]),
        lambda: group_norm(X, 4.0),
        lambda: group_norm([[1.0, 2.0]], 1),
        lambda: group_norm(X.to(torch.complex64), 4),
        lambda: norm_layer(8),
        lambda: norm_layer(None),
        lambda: norm_layer("gn")(0),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_where_it_is_given(make: Callable[[], object]) -> None:
    with pytest.raises(GroupNormError, match="expected"):
        make()


def test_channels_without_end_are_refused_at_once() -> None:
    with pytest.raises(DivisibilityError):
        GroupNorm(3, 2 * 10**12)


def test_errors_carry_their_fields():
    with pytest.raises(DivisibilityError) as caught:
        group_norm(X, 3)
    assert (caught.value.length, caught.value.parts, caught.value.what) == (X.shape[1], 3, "num_groups")
    with pytest.raises(UnknownNameError) as caught:
        group_norm(X, 4, activation="rely")
    assert (caught.value.kind, caught.value.name, caught.value.nearest) == ("activation", "rely", "relu")
    assert "silu" in caught.value.known
    with pytest.raises(BackendError) as caught:
        group_norm(torch.empty(0, 8, 4), 4, backend="cpu")
    assert (caught.value.name, caught.value.reason) == ("cpu", "the input has no elements")
