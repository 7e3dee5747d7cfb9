"""What is known of norms of other libraries, and that it is the truth: the forward of each is computed again."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import groupnorm
from groupnorm.conversion.rules import facts

transformers = pytest.importorskip("transformers")

X = torch.randn(2, 8, 5, 5)


@pytest.mark.parametrize("family", ["detr", "rt_detr", "d_fine"])
def test_the_frozen_batch_norms_of_detectors_have_the_eps_of_their_forward(family):
    module = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    frozen = next(kind for name, kind in vars(module).items() if name.endswith("FrozenBatchNorm2d"))
    model = nn.Sequential(frozen(8)).eval()
    for tensor in model.buffers():
        tensor.copy_(torch.rand(8) * 1e-4)  # variances beside which eps counts
    expected = model(X)
    converted = groupnorm.convert(model, "bn")
    assert torch.allclose(converted(X), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in converted.parameters())
    assert len(list(converted.parameters())) == 2


@pytest.mark.parametrize("activates", [True, False])
def test_the_group_norm_of_bit_keeps_its_activation_when_converted_and_converted_again(activates):
    from transformers.models.bit.modeling_bit import BitGroupNormActivation

    config = transformers.BitConfig(num_groups=4)
    model = nn.Sequential(BitGroupNormActivation(config, 8, eps=0.1, apply_activation=activates))
    nn.init.normal_(model[0].weight)
    assert groupnorm.plan(model)["0"].why == "has 4 groups already"
    for groups in (2, 1):
        model = pickle.loads(pickle.dumps(copy.deepcopy(groupnorm.convert(model, f"gn:{groups}"))))
        expected = F.group_norm(X, groups, model[0].weight, model[0].bias, 0.1)
        assert torch.allclose(model(X), expected.relu() if activates else expected, atol=1e-5)
    model = groupnorm.convert(model, "bn").eval()
    assert bool((model(X) >= 0).all()) == activates


def test_the_group_norm_of_poolformer_has_one_group():
    from transformers.models.poolformer.modeling_poolformer import PoolFormerGroupNorm

    known = facts(PoolFormerGroupNorm(8, eps=0.1))
    assert (known.spec, known.channels, known.number, known.eps) == ("gn", 8, 1, 0.1)


def test_a_group_norm_with_a_second_argument_is_refused():
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAEGroupNorm

    plan = groupnorm.plan(nn.Sequential(Emu3VQVAEGroupNorm(num_channels=8, num_groups=2)), "gn:4")
    assert "is a norm that no rule knows" in plan["0"].why


class CausalGroupNorm(nn.Module):
    """Called a norm, and only calls one: of each frame by itself."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        frames = x.transpose(1, 2).flatten(0, 1)
        return self.norm(frames).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class OwnGroupNorm(nn.Module):
    """Called a norm, and computes it without one of torch."""

    def forward(self, x):
        return F.group_norm(x, 2)


def test_a_wrapper_is_no_norm_but_what_it_wraps_is():
    plan = groupnorm.plan(nn.Sequential(CausalGroupNorm(), OwnGroupNorm()), "gn:4")
    assert [(row.path, row.action) for row in plan.rows] == [("0.norm", "replace"), ("1", "refuse")]
    model = nn.Sequential(CausalGroupNorm())
    x = torch.randn(2, 8, 3, 5, 5)
    groupnorm.convert_(model, "gn:4")
    expected = torch.stack([F.group_norm(frame, 4) for frame in x.unbind(2)], 2)
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_no_number_of_groups_is_advised_where_none_helps():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    why = groupnorm.plan(model, sample_input=torch.randn(2, 3, 8, 8))["2"].why
    assert "larger sample_input" in why
    assert "groups=" not in why
