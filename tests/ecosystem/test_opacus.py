"""opacus takes converted models: the gradients of each example are those that it has alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule, PrivacyEngine
from opacus.grad_sample.utils import wrap_model
from opacus.validators import ModuleValidator
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import groupnorm
from ecosystem.networks import CLASSES, LABELS, activated, converted, fused, images, near, residual
from groupnorm.nn.catalog import catalog

# of opacus' hooks on the first layer, whose input is the image and has no gradient
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed:UserWarning")
X = images(dtype=torch.float64)


def learned(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def one_at_a_time(model, x=X):
    """The gradients of each image alone: micro-batches of one, by name."""
    alone = []
    for image, label in zip(x.split(1), LABELS.split(1), strict=True):
        twin = copy.deepcopy(model)
        F.cross_entropy(twin(image), label).backward()
        alone.append({name: p.grad for name, p in learned(twin)})
    return {name: torch.stack([gradients[name] for gradients in alone]) for name in alone[0]}


def of_opacus(model, x=X, mode="hooks"):
    """The module that opacus makes of ``model``, after a backward pass."""
    wrapped = wrap_model(copy.deepcopy(model), mode)
    F.cross_entropy(wrapped(x), LABELS).backward()
    return {name.removeprefix("_module."): p for name, p in learned(wrapped)}


def assert_agrees(model, x=X, mode="hooks"):
    assert ModuleValidator.validate(model, strict=True) == []
    parameters, expected = of_opacus(model, x, mode), one_at_a_time(model, x)
    assert parameters.keys() == expected.keys()
    for name, p in parameters.items():
        atol = near(model, x, expected[name])
        torch.testing.assert_close(p.grad_sample, expected[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_batch_norm_is_rejected_and_its_conversion_accepted():
    assert len(ModuleValidator.validate(residual())) == 2
    assert ModuleValidator.validate(groupnorm.convert(residual(), "gn"), strict=True) == []


EXAMPLES = pytest.mark.parametrize("spec", ["gn", "ln", "in", "rms", "frn", "evonorm-s0"])


@EXAMPLES
def test_gradients_of_each_example_are_those_of_micro_batches(spec):
    assert_agrees(converted(residual().double(), spec))


@EXAMPLES
def test_an_empty_batch_has_no_gradients_of_examples(spec):
    """As sampling draws them from time to time."""
    model = GradSampleModule(converted(residual().double(), spec))
    y = model(X[:0])
    y.backward(torch.randn_like(y))
    assert all(p.grad_sample.shape == (0, *p.shape) for _, p in learned(model))


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activations_in_the_norm_are_part_of_the_gradients(activation, mode):
    """opacus knows a sampler of torch's group norm, which would take the output's gradient for the norm's own."""
    assert_agrees(fused(activation).double(), mode=mode)


def test_opacus_own_sampler_would_be_wrong_with_an_activation(monkeypatch):
    samplers = GradSampleModule.GRAD_SAMPLERS
    monkeypatch.setitem(samplers, groupnorm.GroupNorm, samplers[nn.GroupNorm])
    assert_agrees(fused(None).double())
    with pytest.raises(AssertionError, match="not close"):
        assert_agrees(fused("relu").double())


@pytest.mark.parametrize("spec", ["gn", "frn"])
def test_norm_and_activation_layers_of_timm(spec):
    assert_agrees(converted(activated().double(), spec))


@pytest.mark.parametrize("build", [residual, activated, lambda: fused("relu")], ids=["plain", "timm", "fused"])
def test_norms_of_gradients_in_ghost_clipping(build):
    model = groupnorm.convert(build(), "gn:2").double()
    parameters, expected = of_opacus(model, mode="ghost"), one_at_a_time(model)
    for name, p in parameters.items():
        norms = expected[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(p._norm_sample, norms, rtol=0, atol=near(model, X, norms))


class Separate(BasicBlock):
    """torchvision's block without ``+=``, which backward hooks forbid."""

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + identity)


def resnet(block):
    """The beginning of a resnet18, up to its first stage."""
    layers = list(ResNet(block, [2, 2, 2, 2]).children())[:5]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    return groupnorm.convert(model, "gn").double()


def test_a_resnet_of_torchvision_needs_its_operations_in_place_taken_out():
    x = images(4, 3, 16, 16, dtype=torch.float64)
    assert ModuleValidator.validate(resnet(BasicBlock), strict=True) == []
    with pytest.raises(RuntimeError, match="modified inplace"):
        of_opacus(resnet(BasicBlock), x)
    model = resnet(Separate)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert_agrees(model, x)


def test_standardised_weights_need_convolutions_with_a_bias():
    """A parametrized layer without parameters of its own is no layer to opacus, which hooks the parametrization."""
    with pytest.raises(IndexError, match="list index out of range"):
        of_opacus(converted(residual().double(), "ws+gn"))
    model = converted(residual(bias=True).double(), "ws+gn")
    assert any(name.endswith("parametrizations.weight.original") for name, _ in model.named_parameters())
    assert_agrees(model)


MIXING = [
    row.spec for row in catalog() if row.make is not None and issubclass(row.layer, nn.modules.batchnorm._BatchNorm)
]


@pytest.mark.parametrize("spec", MIXING)
def test_norms_that_mix_examples_are_refused(spec):
    with pytest.raises(NotImplementedError, match="trainable layer with buffers"):
        GradSampleModule(converted(residual(), spec))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8).requires_grad_(False),
        groupnorm.norm_layer("brn")(8, affine=False),
    ],
    ids=["plain", "frozen", "ours"],
)
def test_a_batch_norm_that_does_not_learn_escapes_opacus_and_its_conversion_is_right(norm):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(288, CLASSES)).double()
    with pytest.raises(AssertionError, match="not close"):
        assert_agrees(model)
    assert_agrees(groupnorm.convert(model, "gn"))


def test_expanded_weights_are_refused():
    with pytest.raises(RuntimeError, match="cannot handle function"):
        wrap_model(groupnorm.convert(residual(), "gn"), "ew")(images())


def test_the_fixer_of_opacus_leaves_a_converted_model_as_it_is():
    model = groupnorm.convert(activated(), "gn")
    fixed = ModuleValidator.fix(model)
    assert str(fixed) == str(model)
    x = images()
    assert torch.equal(fixed(x), model(x))


@pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning")  # as it is for experiments
def test_a_private_step_clips_the_gradient_of_each_example():
    model = groupnorm.convert(activated(), "gn").double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = one_at_a_time(model)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in expected.values()]).norm(dim=0)
    bound = norms.median().item()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, LABELS), batch_size=4)
    module, optimizer, _ = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=loader,
        noise_multiplier=0.0,
        max_grad_norm=bound,
        poisson_sampling=False,
    )
    F.cross_entropy(module(X), LABELS).backward()
    optimizer.step()
    factors = (bound / (norms + 1e-6)).clamp(max=1)  # opacus' own guard against a norm of 0
    assert 0 < (factors < 1).sum() < 4
    for name, p in model.named_parameters():
        step = 0.1 * torch.einsum("n,n...->...", factors, expected[name]) / 4
        torch.testing.assert_close(p, before[name] - step, rtol=0, atol=near(model, X, step))
