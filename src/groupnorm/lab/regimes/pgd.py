"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083): images made to be misread."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def pgd(
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    radius: float,
    steps: int,
    step_size: float,
    white: float,
    generator: Generator,
) -> Tensor:
    """Images no further than ``radius`` away in any value, changed step by step so that the loss rises.

    From a random point of the cube around each image, each step goes ``step_size`` along the sign of the gradient,
    then back into the cube and between black and white. All in stored units: what standardises the images is part of
    ``logits``, so that a channel with a large standard deviation has no larger radius.

    Args:
        logits: from images ``[b, C, H, W]`` to logits ``[b, K]``; in evaluation mode, so that no image depends on the
            others. Its parameters get no gradient.
        images: ``[b, C, H, W]``, float.
        labels: ``[b]``, the true classes.
        radius: of the cube.
        steps: number of gradients.
        step_size: of a step.
        white: the largest value; black is 0.
        generator: of the starting point, on the CPU, so that every device starts alike.
    """
    low, high = (images - radius).clamp(min=0), (images + radius).clamp(max=white)
    start = radius * (2 * torch.rand(images.shape, generator=generator) - 1).to(images)
    changed = torch.minimum(torch.maximum(images + start, low), high)
    for _ in range(steps):
        changed.requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(logits(changed).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, changed)
        changed = changed.detach() + step_size * gradient.sign()
        changed = torch.minimum(torch.maximum(changed, low), high)
    return changed.detach()
