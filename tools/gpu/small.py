"""A small call along every route of the kernels, for a tool that watches what they read and write."""

import torch

from groupnorm.functional import group_norm

for shape, groups in (((3, 12, 5, 7), 4), ((2, 64, 40, 40), 8), ((1, 32, 300, 301), 4)):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=memory_format).requires_grad_()
        weight, bias = (torch.randn(shape[1], device="cuda", requires_grad=True) for _ in range(2))
        y = group_norm(x, groups, weight, bias, activation="silu", backend="triton")
        y.backward(torch.randn_like(y))
torch.cuda.synchronize()
print("done")
