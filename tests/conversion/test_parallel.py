"""A conversion within DistributedDataParallel: what it does not see is a warning, and nothing else is."""

import gc
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import groupnorm


@pytest.fixture(autouse=True)
def alone(tmp_path):
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    gc.collect()  # wrappers hold the group, whose threads would outlive the interpreter
    dist.destroy_process_group()


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


class Around(nn.Module):
    """As the modules of trainers, which have the network within them."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


CHANGES = {
    "gn": "no buffers any longer, without which its next forward pass fails",
    "frn": "1 parameter more, whose gradients it does not average, and no buffers any longer",
    "bcn": "2 parameters more, whose gradients it does not average",
}


@pytest.mark.parametrize("holder", [nn.Identity, Around])
@pytest.mark.parametrize("spec", CHANGES)
def test_what_the_wrapper_does_not_see_is_a_warning(spec, holder):
    model = network()
    wrapper = DistributedDataParallel(holder(model) if holder is Around else model)
    with pytest.warns(UserWarning, match=f"does not see that it has {CHANGES[spec]}.*wrap it anew") as caught:
        groupnorm.convert_(model, spec)
    assert caught[0].filename == __file__
    del wrapper
    again = DistributedDataParallel(model)  # the remedy
    again(torch.randn(2, 3, 8, 8)).backward(torch.randn(2, 2, 6, 6))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_parameters_that_are_gone_are_a_warning():
    model = groupnorm.convert(network(), "frn")
    wrapper = DistributedDataParallel(model)
    with pytest.warns(UserWarning, match="1 parameter less, whose gradients it waits for"):
        groupnorm.convert_(model, "gn")
    del wrapper


def test_without_the_last_buffer_the_forward_pass_of_the_wrapper_fails():
    """What the warning says is so."""
    model = network()
    wrapper = DistributedDataParallel(model)
    with pytest.warns(UserWarning, match="wrap it anew"):
        groupnorm.convert_(model, "gn")
    with pytest.raises(RuntimeError):
        wrapper(torch.randn(2, 3, 8, 8))
    del wrapper


def test_before_it_is_wrapped_and_where_nothing_is_unseen_there_is_no_warning():
    other = DistributedDataParallel(network())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groupnorm.convert_(network(), "frn")
        model = network()
        wrapper = DistributedDataParallel(model)
        groupnorm.convert(model, "frn")
        groupnorm.convert_(model, "brn")
    wrapper(torch.randn(2, 3, 8, 8)).backward(torch.randn(2, 2, 6, 6))
    del other, wrapper
