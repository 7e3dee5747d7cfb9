"""accelerate prepares converted models, and prepared ones may be converted; the bits are those of plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import groupnorm
from ecosystem.networks import LABELS, images, residual


@pytest.fixture
def accelerator(monkeypatch):
    """One that leaves nothing behind: its state is shared by the whole process."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def batches():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images(), LABELS), batch_size=2)


def train(model, optimizer, loader, backward=torch.Tensor.backward):
    losses = []
    for _ in range(2):
        for x, labels in loader:
            loss = F.cross_entropy(model(x), labels)
            backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def assert_same_bits(model, plain):
    for (name, value), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("spec", ["gn", "ws+gn", "brn"])
def test_a_converted_model_trains_as_in_plain_pytorch(accelerator, spec):
    model = groupnorm.convert(residual(), spec, sample_input=images())
    plain, start = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    prepared, optimizer, loader = accelerator.prepare(model, sgd(model), batches())
    losses = train(prepared, optimizer, loader, accelerator.backward)
    assert losses == train(plain, sgd(plain), batches())
    assert_same_bits(accelerator.unwrap_model(prepared), plain)
    assert not any(torch.equal(p, start[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("prepared_first", [False, True])
def test_the_optimizer_follows_a_conversion_before_and_after_prepare(accelerator, prepared_first):
    plain, model = residual(), residual()
    plain.load_state_dict(model.state_dict())
    optimizers = sgd(plain), sgd(model)
    assert train(plain, optimizers[0], batches()) == train(model, optimizers[1], batches())  # there is momentum now
    groupnorm.convert_(plain, "frn", optimizer=optimizers[0])
    if prepared_first:
        model, optimizer, loader = accelerator.prepare(model, optimizers[1], batches())
        groupnorm.convert_(model, "frn", optimizer=optimizer)
    else:
        groupnorm.convert_(model, "frn", optimizer=optimizers[1])
        model, optimizer, loader = accelerator.prepare(model, optimizers[1], batches())
    assert train(model, optimizer, loader, accelerator.backward) == train(plain, optimizers[0], batches())
    assert_same_bits(accelerator.unwrap_model(model), plain)
    assert not torch.equal(model[0].bn1.learned_eps, torch.tensor(1e-4))  # a parameter that batch norm does not have
