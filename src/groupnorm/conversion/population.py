"""Running statistics of batch norms computed anew, as those of a population instead of a moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupnorm.conversion.probe import evaluating, inputs_of, run
from groupnorm.conversion.rules import Facts, facts
from groupnorm.errors import ArgumentError, ConversionError, UnknownNameError

_BATCH_NORMS = ("bn", "syncbn", "ghost", "brn")
"""Rows of the catalog that evaluate as batch norm does, with running statistics alone."""


def recompute_statistics_(
    model: nn.Module,
    data: Iterable[Any],
    *,
    estimator: str = "pooled",
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Compute the running mean and variance of every batch norm anew, in place: precise batch norm.

    A model whose norms have just become batch norms has none yet, and a moving average follows weights that have
    changed since. Here each batch runs through the model as it is, without gradients, every batch norm with the
    statistics of the batch and all else in evaluation mode.

    Args:
        model: the network.
        data: batches of inputs, or of tuples that begin with the inputs, of the size used in training.
        estimator: "pooled", the variance of all elements around the mean of all, or "average", the mean of their
            variances. Default: "pooled".
        progress: called after each batch with the number of batches done.

    Returns:
        Paths of the norms.

    Raises:
        ArgumentError: no data, or an unknown estimator.
        ConversionError: the model has no batch norm with running statistics.

    Source: Wu & Johnson 2021 (arXiv:2105.07576), section 3.1.
    """
    if estimator not in ("pooled", "average"):
        raise UnknownNameError("estimator", estimator, ["pooled", "average"])
    norms = {
        path: (module, known)
        for path, module in model.named_modules()
        if isinstance(module._buffers.get("running_mean"), Tensor)
        and (known := facts(module)) is not None
        and known.spec in _BATCH_NORMS
        and not known.frozen
    }
    if not norms:
        raise ConversionError(
            "the model has no batch norm with running statistics; expected some: convert it with to='bn', or do not "
            "call this"
        )
    sums = {path: torch.zeros(4, known.channels, dtype=torch.float64) for path, (_, known) in norms.items()}
    hooks = [
        norm.register_forward_hook(
            lambda norm, inputs, output, path=path, known=known: _batch_norm(norm, known, inputs[0], sums[path]),
            prepend=True,
        )
        for path, (norm, known) in norms.items()
    ]
    done = 0
    try:
        with torch.no_grad(), evaluating(model):
            for batch in data:
                run(model, inputs_of(batch, model))
                progress(done := done + 1)
    finally:
        for hook in hooks:
            hook.remove()
    if not done:
        raise ArgumentError("data has no batches; expected some inputs of the model, a few thousand images")
    for path, (norm, _) in norms.items():
        if sums[path][0, 0] > 0:
            _write(norm, sums[path], estimator, done)
    return list(norms)


def _batch_norm(norm: Any, known: Facts, x: Tensor, sums: Tensor) -> Tensor:
    """The output of a norm with the statistics of the batch, which are counted."""
    axes = (0, *range(2, x.dim()))
    variance, mean = torch.var_mean(x.double(), axes, correction=0)
    count = torch.full_like(mean, x.numel() / x.shape[1])
    unbiased = variance * count / (count - 1)
    sums += torch.stack([count, count * mean, count * (variance + mean**2), count * unbiased]).to(sums.device)
    y = F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    for name in known.after:
        y = getattr(norm, name)(y)
    return y


def _write(norm: nn.Module, sums: Tensor, estimator: str, batches: int) -> None:
    count = sums[0]
    mean, square, average = sums[1:] / count
    variance = average if estimator == "average" else (square - mean**2) * count / (count - 1)
    for name, value in (("running_mean", mean), ("running_var", variance)):
        norm.get_buffer(name).copy_(value)
    if norm._buffers.get("num_batches_tracked") is not None:
        norm.get_buffer("num_batches_tracked").fill_(batches)
