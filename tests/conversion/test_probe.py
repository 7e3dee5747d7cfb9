"""What a batch is, for everything that runs a model on data."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from groupnorm.conversion.probe import check_batches, device_of, first_tensor, inputs_of, known_facts, run
from groupnorm.errors import ArgumentError

A, B, LABELS = torch.ones(2, 3), torch.zeros(2, 3), torch.arange(2)
META = nn.Linear(3, 3, device="meta")
Pair = namedtuple("Pair", "left right")


class Told(nn.Module):
    """Gives back what it was called with."""

    def forward(self, *inputs, **options):
        return inputs, options


@pytest.mark.parametrize(
    ("batch", "inputs", "options"),
    [
        (A, (A,), {}),
        ((A, LABELS), (A,), {}),
        ([A, LABELS], (A,), {}),
        ([[A, B], LABELS], (A, B), {}),
        (((A, B), LABELS), (A, B), {}),
        (([[A, B]], LABELS), ([A, B],), {}),
        ({"x": A, "labels": LABELS}, (), {"x": A, "labels": LABELS}),
        (({"x": A}, LABELS), (), {"x": A}),
        ([Pair(A, B), LABELS], (A, B), {}),
    ],
)
def test_a_batch_is_its_inputs_or_begins_with_them(batch, inputs, options):
    assert run(Told(), inputs_of(batch, Told())) == (inputs, options)


def test_a_data_loader_gives_batches():
    (batch,) = DataLoader(TensorDataset(A, LABELS), batch_size=2)
    assert torch.equal(inputs_of(batch, Told()), A)


@pytest.mark.parametrize("nest", [lambda x: x, lambda x: (x, [x]), lambda x: {"a": x, "b": {"c": (x,)}}])
def test_every_tensor_goes_to_the_device_of_the_model(nest):
    assert str(inputs_of((nest(A), LABELS), META)) == str(nest(A.to("meta")))


def test_what_is_no_tensor_stays_and_a_named_tuple_stays_one():
    moved = inputs_of(({"size": (2, "x"), "pair": Pair(A, None)}, LABELS), META)
    assert moved["size"] == (2, "x")
    assert moved["pair"].left.is_meta
    assert moved["pair"].right is None


def test_a_model_without_parameters_has_the_device_of_its_buffers_or_none():
    assert device_of(nn.ReLU()) is None
    assert device_of(nn.BatchNorm2d(2, affine=False, device="meta")) == torch.device("meta")
    assert inputs_of(A, nn.ReLU()) is A


def test_what_is_no_batch_is_told():
    with pytest.raises(ArgumentError, match=r"a batch is \(\); expected inputs, or a tuple that begins with them"):
        inputs_of((), META)
    with pytest.raises(
        ArgumentError, match=r"data is one Tensor of shape \(2, 3\); expected batches, such as \[images\]"
    ):
        check_batches(A)
    with pytest.raises(ArgumentError, match=r"data is one dict; expected batches"):
        check_batches({"x": A})


def test_what_a_layer_was_called_with():
    assert first_tensor((None, A), {"x": B}) is A
    assert first_tensor((), {"x": B}) is B
    assert first_tensor((), {}) is None


def test_a_norm_that_no_rule_knows_is_passed_over():
    class OddBatchNorm(nn.BatchNorm2d):
        pass

    assert known_facts(OddBatchNorm(2)) is None
    assert known_facts(nn.BatchNorm2d(2)).spec == "bn"
