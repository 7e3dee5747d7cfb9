"""torch.compile takes converted networks whole: one graph, the outputs and gradients of eager mode, any batch size."""

import copy

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounter

import groupnorm
from ecosystem.networks import CLASSES, activated, converted, fused, images, near, residual
from stepwise import PARTITIONED


def with_relu():
    return fused("relu")


SPECS = ["gn", "ln", "in", "ws+gn", "frn", "brn", "ghost:2", "bcn"]
TRAIN = [*((residual, spec) for spec in SPECS), (activated, "gn"), (with_relu, "ln")]
EVALUATE = [*((residual, spec) for spec in ("gn", "frn", "brn", "bcn")), (activated, "brn")]
"""The norms that have an evaluation of their own, and one that does not."""
CASES = [
    pytest.param(build, spec, mode, id=f"{build.__name__}-{spec}-{'train' if mode else 'eval'}")
    for mode, networks in ((True, TRAIN), (False, EVALUATE))
    for build, spec in networks
]


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(model, x, upstream):
    """Output, and gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(upstream)
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def assert_same_steps(compiled, eager, sizes):
    for size in sizes:
        x = images(size, 3, 8, 8, dtype=next(eager.parameters()).dtype)
        upstream = torch.randn(size, CLASSES, dtype=x.dtype)
        for got, want in zip(step(compiled, x, upstream), step(eager, x, upstream), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=near(eager, x, want))
        for name, want in eager.state_dict().items():
            got = compiled._orig_mod.state_dict()[name]
            if want.is_floating_point():
                torch.testing.assert_close(got, want, rtol=0, atol=near(eager, x, want), msg=name)
            else:
                assert torch.equal(got, want), name


@pytest.mark.parametrize(("build", "spec", "training"), CASES)
def test_one_graph_with_the_numbers_of_eager_mode(build, spec, training):
    eager = converted(build(), spec).double().train(training)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend=PARTITIONED)
    assert_same_steps(compiled, eager, [4, 4])


@pytest.mark.parametrize("spec", ["ws+gn", "brn"])
def test_dynamo_tells_of_no_graph_break(spec):
    found = torch._dynamo.explain(converted(residual(), spec))(images())
    assert (found.graph_break_count, found.graph_count) == (0, 1), found.break_reasons


@pytest.mark.parametrize("spec", ["ws+gn", "frn", "brn"])
def test_two_compilations_serve_every_batch_size(spec):
    counter = CompileCounter()
    compiled = torch.compile(converted(residual(), spec), fullgraph=True, backend=counter)
    for size in (4, 2, 3, 5, 8):
        compiled(images(size, 3, 8, 8))
    assert counter.frame_count == 2  # the first size, and all others


def test_one_dynamic_graph_computes_what_eager_mode_does_at_every_batch_size():
    eager = converted(residual(), "gn").double()
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend=PARTITIONED, dynamic=True)
    assert_same_steps(compiled, eager, [4, 2, 5])


def test_ghost_batch_norm_is_compiled_again_for_each_number_of_chunks():
    counter = CompileCounter()
    compiled = torch.compile(groupnorm.norm_layer("ghost:2")(3), fullgraph=True, backend=counter)
    for size in (4, 6, 8, 4, 6, 8):
        compiled(images(size, 3, 8, 8))
    assert counter.frame_count == 3


def test_the_default_backend_computes_what_eager_mode_does():
    eager = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    eager = converted(eager, "gn").double()
    assert_same_steps(torch.compile(copy.deepcopy(eager), fullgraph=True), eager, [4, 4])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("spec", ["gn", "frn", "brn"])
def test_torch_jit_script_does_not_take_them(spec):
    with pytest.raises(ValueError, match="Unknown type annotation"):
        torch.jit.script(converted(residual(), spec))
