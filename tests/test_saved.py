"""What the forward pass saves is what a compiled backward pass uses."""

import torch
from torch import nn
from torch.library import opcheck

from agreement import make_case
from groupnorm.ops.saved import saved
from stepwise import PARTITIONED


class ScaledByItsCount(nn.Module):
    """``x / (1 + count)``, and counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        factor = saved(1 / (1 + self.count))
        self.count.add_(1)
        return x * factor


def test_a_compiled_backward_pass_does_not_read_a_buffer_again_that_has_moved():
    torch.compiler.reset()
    layer = torch.compile(ScaledByItsCount(), fullgraph=True, backend=PARTITIONED)
    for count in range(3):
        x = make_case((2, 3)).x.requires_grad_()
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.full_like(x, 1 / (1 + count)))


def test_it_is_the_number_itself_in_eager_mode():
    x = torch.randn(3)
    assert saved(x) is x


def test_it_is_an_operation_as_torch_wants_it():
    opcheck(torch.ops.groupnorm.saved.default, (torch.randn(2, 3),))
    opcheck(torch.ops.groupnorm.saved.default, (torch.tensor(True),))
