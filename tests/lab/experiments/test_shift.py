"""Batch norm with the statistics of the test batch."""

import copy

import torch
from torch import nn

from groupnorm.lab.experiments.shift import adapt


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    model(5 + 3 * torch.randn(16, 1, 8, 8))  # running statistics unlike those of the images below
    return model


def test_it_gives_what_training_mode_gives_and_leaves_the_network_as_it_was():
    model, images = network(), torch.randn(8, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    adapted = adapt(model)
    found = adapted(images)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(found, copy.deepcopy(model).train()(images))
    assert not torch.allclose(found, model.eval()(images), atol=0.1)
    assert torch.equal(found, adapted(images))


def test_a_network_without_batch_norm_has_nothing_to_adapt():
    assert adapt(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))) is None
