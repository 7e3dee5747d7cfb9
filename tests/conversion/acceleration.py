"""What accelerate_ must keep, held against any model."""

import warnings
from unittest.mock import patch

import torch
from torch import Tensor, nn

import groupnorm
from groupnorm.conversion import NothingConvertedWarning

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def gn(channels=8):
    return nn.GroupNorm(4, channels)


def results(model, inputs, training):
    """Output and all gradients under a random upstream gradient, which is the same in every call."""
    model.train(training).zero_grad()
    inputs = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    torch.manual_seed(1)
    y = model(*inputs)
    y = y if isinstance(y, Tensor) else y.sample
    y.backward(torch.randn_like(y))
    leaves = {**dict(model.named_parameters()), **{str(i): x for i, x in enumerate(inputs) if isinstance(x, Tensor)}}
    return {"y": y.detach(), **{name: p.grad.clone() for name, p in leaves.items() if p.grad is not None}}


def activated(model, *inputs):
    """The activations that norms apply themselves in a call of the model, in their order."""
    seen, plain = [], groupnorm.GroupNorm.activated

    def look(self, input, activation):
        seen.append(activation)
        return plain(self, input, activation)

    with patch.object(groupnorm.GroupNorm, "activated", look), torch.no_grad():
        model(*inputs)
    return [name for name in seen if name]


def accelerated(model, *inputs):
    """Accelerate a model in float64, where rounding is far below any mistake, hold all that it computes against what it
    computed before, and take it back.

    Returns:
        the plan, and the activations that norms applied themselves.
    """
    model.double()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    inputs = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    before = [results(model, inputs, training) for training in (True, False)]
    text, state = str(model), {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    classes = [type(module) for module in model.modules()]
    plan = groupnorm.accelerate_.plan(model)
    assert (str(model), [type(module) for module in model.modules()]) == (text, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingConvertedWarning)
        report = groupnorm.accelerate_(model)
    assert report.plan == plan
    torch.testing.assert_close([results(model, inputs, training) for training in (True, False)], before)
    seen = activated(model, *inputs)
    now = model.state_dict(keep_vars=True)
    assert list(now) == list(state)
    assert all(now[key] is value for key, (value, _) in state.items())
    report.undo()
    assert (str(model), [type(module) for module in model.modules()]) == (text, classes)
    assert all(torch.equal(value, copied) for value, copied in state.values())
    torch.testing.assert_close([results(model, inputs, t) for t in (True, False)], before, rtol=0, atol=0)
    return plan, seen


def left(plan):
    """Why norms take over nothing."""
    return [row.why for row in plan.rows if "+" not in row.new]
