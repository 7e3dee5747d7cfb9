"""Weight norm, and the batch that it is initialised on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupnorm.lab.experiments.norms import EXPERIMENT, WeightNormTraining, reparametrise
from groupnorm.lab.models import build
from groupnorm.lab.models.small_resnet import BasicBlock
from groupnorm.lab.regimes import training
from groupnorm.lab.sweeps.configuration import plan


def reparametrised(as_shortcuts):
    network = build("resnet-tiny", "none", torch.randn(2, 1, 8, 8), 10)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    reparametrise(network, as_shortcuts=as_shortcuts)
    return network, before


def last_of_blocks(network):
    return [module.conv2 for module in network.modules() if isinstance(module, BasicBlock)]


@pytest.mark.parametrize("as_shortcuts", [False, True])
def test_weights_start_as_they_were_and_blocks_as_their_shortcuts_if_asked_to(as_shortcuts):
    network, before = reparametrised(as_shortcuts)
    last = last_of_blocks(network) if as_shortcuts else []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            expected = torch.zeros_like(module.weight) if module in last else before[f"{name}.weight"]
            torch.testing.assert_close(module.weight, expected)
            assert module.bias is not None


def test_only_the_scale_of_a_filter_changes_its_length():
    """``w = g v / |v|``: the weight has the length g, whatever that of v."""
    network, _ = reparametrised(as_shortcuts=False)
    for layer in (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)):
        scale, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        with torch.no_grad():
            scale.copy_(torch.rand_like(scale) + 0.5)
            direction.mul_(3)
        torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), scale.flatten())
        torch.testing.assert_close(
            F.cosine_similarity(layer.weight.flatten(1), direction.flatten(1)), torch.ones(len(direction))
        )


def test_the_arm_of_weight_norm_trains_a_network_without_a_norm():
    options = EXPERIMENT.smoke.arms["wn"][0]
    comparison, dataset = plan(**options)
    run = training(comparison.cells(dataset.digest)[0], dataset)
    assert isinstance(run, WeightNormTraining)
    assert not [m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    run.epoch()
    assert all(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
