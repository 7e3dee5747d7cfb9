"""The operation as PyTorch knows it: under compilers, in exported programs, with fake tensors."""

import warnings

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from agreement import Case, assert_agrees, make_case, run
from backends import by_compiled_backend
from groupnorm import GroupNorm
from groupnorm.errors import ArgumentError, DeviceError, DivisibilityError, DtypeError, ShapeError, UnknownNameError
from groupnorm.functional import ACTIVATIONS, group_norm, group_norm_statistics
from groupnorm.ops import cpu
from groupnorm.sets import group_set

OP, BACKWARD = torch.ops.groupnorm.group_norm.default, torch.ops.groupnorm.group_norm_backward.default
BACKENDS_OF_THE_OPERATION = ["auto", "native", "cpu"]
needs_cpu = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
LARGE = (2, 8, 40, 50)
"""More elements than are worth a kernel."""


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised inside opcheck
@pytest.mark.parametrize("backend", BACKENDS_OF_THE_OPERATION)
@pytest.mark.parametrize("affine", ["weight bias", "weight", "none"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(affine, layout, backend):
    case = make_case((2, 12, 5, 3), affine=affine)
    x = case.x.to(memory_format=layout).detach().requires_grad_()
    parameters = [None if p is None else p.requires_grad_() for p in (case.weight, case.bias)]
    opcheck(OP, (x, *parameters, 3, 1e-5, "silu", backend))
    mean, rstd = group_norm_statistics(x.detach(), 3)
    detached = [None if p is None else p.detach() for p in parameters]
    opcheck(BACKWARD, (case.upstream, x.detach(), *detached, mean, rstd, 3, 1e-5, "silu", backend))


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_OPERATION)
@pytest.mark.parametrize("affine", ["weight bias", "weight", "bias", "none"])
@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
def test_it_is_the_definition(activation, affine, backend):
    case = make_case((2, 12, 5, 3), affine=affine)
    outcome = run(lambda x, w, b: OP(x, w, b, 4, 1e-5, activation, backend)[0], case)
    assert_agrees(outcome, case, group_set(4), activation=activation or None)


WRONG = {
    "a scale that is too short": (lambda x: (x, torch.ones(2), None, 4, 1e-5, ""), ShapeError),
    "a shift that is too short": (lambda x: (x, None, torch.ones(2), 4, 1e-5, ""), ShapeError),
    "a scale of another dtype": (lambda x: (x, torch.ones(8).half(), None, 4, 1e-5, ""), DtypeError),
    "no groups": (lambda x: (x, None, None, 0, 1e-5, ""), ArgumentError),
    "groups that do not divide": (lambda x: (x, None, None, 3, 1e-5, ""), DivisibilityError),
    "an unknown activation": (lambda x: (x, None, None, 4, 1e-5, "mish"), UnknownNameError),
    "an unknown backend": (lambda x: (x, None, None, 4, 1e-5, "", "gpu"), UnknownNameError),
    "a negative eps": (lambda x: (x, None, None, 4, -1.0, ""), ArgumentError),
    "no channels": (lambda x: (x[0, :, 0, 0], None, None, 4, 1e-5, ""), ShapeError),
    "integers": (lambda x: (x.long(), None, None, 4, 1e-5, ""), DtypeError),
}


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_the_operator_refuses_a_parameter_on_meta(name):
    """Such a call comes to what stands for it with fake tensors, which computes nothing."""
    x = torch.randn(2, 8, 4, 4)
    given = {"weight": None, "bias": None} | {name: torch.ones(8, device="meta")}
    with pytest.raises(DeviceError, match=f"{name} is on meta and the input on cpu"):
        OP(x, *given.values(), 4, 1e-5, "", "auto")
    y, _, _ = OP(x.to("meta"), torch.ones(8, device="meta"), None, 4, 1e-5, "", "auto")
    assert y.shape == x.shape


@pytest.mark.parametrize("name", ["dy", "weight", "bias", "mean", "rstd"])
def test_the_backward_operator_refuses_an_argument_on_meta(name):
    x, of_group = torch.randn(2, 8, 4, 4), torch.ones(2, 4)
    tensors = {"dy": x, "x": x, "weight": torch.ones(8), "bias": torch.ones(8), "mean": of_group, "rstd": of_group}
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(DeviceError, match=f"{name} is on meta and the input on cpu"):
        BACKWARD(*tensors.values(), 4, 1e-5, "", "auto")


def test_an_exported_program_refuses_a_scale_on_meta():
    class Scaled(torch.nn.Module):
        def forward(self, x, weight):
            return group_norm(x, 4, weight)

    x = torch.randn(LARGE)
    program = torch.export.export(Scaled(), (x, torch.ones(8))).module()
    with pytest.raises(RuntimeError):
        program(x, torch.ones(8, device="meta"))


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_OPERATION)
@pytest.mark.parametrize("wrong", WRONG)
def test_the_operator_checks_what_it_is_given(wrong: str, backend: str) -> None:
    """Exported programs call it without the function around it."""
    make, error = WRONG[wrong]
    x = torch.randn(2, 8, 40, 40)
    arguments = make(x)
    arguments = arguments if len(arguments) == 7 else (*arguments, backend)
    with pytest.raises(error):
        OP(*arguments)
    mean = torch.zeros(2, 4)
    with pytest.raises(error):
        BACKWARD(torch.randn_like(arguments[0].float()), *arguments[:3], mean, mean, *arguments[3:])


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_OPERATION)
def test_the_backward_operator_checks_gradient_and_statistics(backend: str) -> None:
    x, mean = torch.randn(2, 8, 40, 40), torch.zeros(2, 4)
    for dy, m in ((x[:1], mean), (x.double(), mean), (x, mean[:1]), (x, mean[:, :2])):
        with pytest.raises((ShapeError, DtypeError)):
            BACKWARD(dy, x, None, None, m, m, 4, 1e-5, "", backend)
    transposed = torch.rand(4, 2).t()
    for a, b in zip(
        BACKWARD(x, x, None, None, transposed, transposed, 4, 1e-5, "", backend),
        BACKWARD(x, x, None, None, transposed.contiguous(), transposed.contiguous(), 4, 1e-5, "", backend),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_program_whose_weight_was_exchanged_raises() -> None:
    program = torch.export.export(GroupNorm(4, 8), (torch.randn(LARGE),)).module()
    program.get_parameter("weight").data = torch.ones(2)
    with pytest.raises(ShapeError, match=r"weight has shape \(2,\); expected \(8,\)"):
        program(torch.randn(LARGE))


STRIDED = {
    "sliced channels last": lambda x: x.repeat(1, 2, 1, 1).to(memory_format=torch.channels_last)[:, : x.shape[1]],
    "every second column": lambda x: x.repeat(1, 1, 1, 2).to(memory_format=torch.channels_last)[..., ::2],
    "an image of (H, W, C)": lambda x: x[:1].permute(0, 2, 3, 1).contiguous()[0].permute(2, 0, 1)[None],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_OPERATION)
@pytest.mark.parametrize("strided", STRIDED)
def test_strides_are_those_that_compilers_are_promised(strided: str, backend: str) -> None:
    x = STRIDED[strided](torch.randn(2, 16, 40, 36))
    opcheck(OP, (x, None, None, 4, 1e-5, "silu", backend), test_utils=("test_schema", "test_faketensor"))
    norm = GroupNorm(4, 16, activation="silu", backend=backend).eval()
    compiled = torch.compile(lambda x: norm(x) * 2, fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, norm(x) * 2)


def test_an_output_that_is_given_compiles() -> None:
    def norm(x: Tensor) -> Tensor:
        return group_norm(x, 4, activation="silu", out=torch.empty_like(x))

    x = torch.randn(LARGE)
    torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="eager")(x), norm(x))


@pytest.mark.parametrize("strided", [lambda x: x[..., ::2], lambda x: x.transpose(2, 3)], ids=["sliced", "transposed"])
def test_any_strides(strided):
    case = make_case((2, 12, 8, 6))
    x, dy = strided(case.x), strided(case.upstream)
    case = Case(x, case.weight, case.bias, dy)
    assert_agrees(run(lambda x, w, b: OP(x, w, b, 4, 1e-5, "", "auto")[0], case), case, group_set(4))


def recorded(function, *inputs):
    """The operations in the graph that is compiled of a function, and its outputs."""
    seen = []

    def look(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    return seen, torch.compile(function, fullgraph=True, backend=look)(*inputs)


@needs_cpu
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_graph_has_it_where_kernels_are_faster(training):
    norm = GroupNorm(4, 8, activation="silu").train(training)
    large, small = torch.randn(LARGE), torch.randn(2, 8, 3)
    seen, y = recorded(norm, large)
    assert torch.ops.groupnorm.group_norm in [getattr(t, "_overloadpacket", t) for t in seen] or OP in seen
    torch.testing.assert_close(y, norm(large))
    seen, y = recorded(norm, small)
    assert OP not in seen
    torch.testing.assert_close(y, norm(small))


@by_compiled_backend
@pytest.mark.parametrize("backend_of_compile", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compiled_steps_are_the_definition_and_keep_the_layout(layout, backend_of_compile, backend):
    case = make_case((2, 12, 9, 5))
    x, dy = case.x.to(memory_format=layout), case.upstream.to(memory_format=layout)
    case = Case(x, case.weight, case.bias, dy)

    @torch.compile(fullgraph=True, backend=backend_of_compile)
    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return group_norm(x, 4, w, b, activation="silu", backend=backend)

    outcome = run(norm, case)
    assert_agrees(outcome, case, group_set(4), activation="silu")
    assert outcome.y.is_contiguous(memory_format=layout)


@needs_cpu
def test_a_dynamic_graph_chooses_when_the_sizes_are_known():
    norm = GroupNorm(4, 8, activation="relu")
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 8, 40, 50), (3, 8, 50, 60), (2, 8, 3, 3), (1, 8, 4, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), norm(x))


def test_what_is_fused_compiles_too():
    case, r = make_case((2, 12, 9, 5)), torch.randn(2, 12, 9, 5, dtype=torch.float64)
    mask = torch.rand(2, 9, 5) < 0.8

    def norm(x: Tensor) -> Tensor:
        statistics = group_norm_statistics(x, 4)
        y = group_norm(x, 4, statistics=statistics) + group_norm(x, 4, activation="silu", mask=mask)
        return y + group_norm(x, 4, residual=r)

    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case.x), norm(case.x))


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.jacrev])
def test_a_compiled_transform_is_the_transform(transform):
    xs, dy = torch.randn(3, *LARGE), torch.randn(LARGE)
    inputs = xs if transform is torch.vmap else xs[0, :, :, :4, :4]
    dy = dy if transform is torch.vmap else dy[:, :, :4, :4]
    apply = transform(lambda x: (group_norm(x, 4, activation="silu") * dy).sum())
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), apply(inputs), rtol=1e-4, atol=1e-4)


@needs_cpu
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_exported_program_has_it_and_can_be_decomposed(dynamic):
    norm = GroupNorm(4, 8, activation="gelu").eval()
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},) if dynamic else None
    program = torch.export.export(norm, (torch.randn(LARGE),), dynamic_shapes=shapes)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert OP in targets
    x = torch.randn((3, 8, 4, 6) if dynamic else LARGE)
    torch.testing.assert_close(program.module()(x), norm(x))
    from groupnorm.ops.library import decomposition

    plain = program.run_decompositions({OP: decomposition})
    assert OP not in [node.target for node in plain.graph.nodes]
    torch.testing.assert_close(plain.module()(x), norm(x))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_onnx_has_its_own_group_normalization(activation):
    norm = GroupNorm(4, 8, activation=activation).eval()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(norm, (x,), opset_version=21, verbose=False, dynamo=True)
    assert [n.op_type for n in program.model_proto.graph.node].count("GroupNormalization") == 1
    assert not {n.op_type for n in program.model_proto.graph.node} & {"InstanceNormalization", "ReduceMean"}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), norm(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_OPERATION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors_get_shape_dtype_and_layout(dtype, backend):
    with FakeTensorMode():
        x = torch.empty(2, 8, 5, 3, dtype=dtype).to(memory_format=torch.channels_last)
        y = group_norm(x, 4, activation="relu", backend=backend)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert backend != "cpu" or y.is_contiguous(memory_format=torch.channels_last)  # ATen's says otherwise


@pytest.mark.parametrize("given", [{}, {"residual": True}])
def test_an_output_that_is_given_breaks_no_graph(given):
    def norm(x, residual):
        options = {"residual": residual} if given else {}
        return group_norm(x, 8, activation="silu", out=torch.empty_like(x), **options)

    x, residual = torch.randn(2, 64, 32, 32), torch.randn(2, 64, 32, 32)
    compiled = torch.compile(norm, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, residual), norm(x, residual))
