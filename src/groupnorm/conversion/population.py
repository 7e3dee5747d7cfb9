"""Running statistics of batch norms computed anew, as those of a population instead of a moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupnorm.conversion.probe import check_batches, evaluating, first_tensor, known_facts, run_batch
from groupnorm.conversion.rules import Facts
from groupnorm.errors import ArgumentError, ConversionError, SingleElementError, UnknownNameError

BATCH_NORMS = ("bn", "syncbn", "ghost", "brn")
"""Rows of the catalog that evaluate as batch norm does, with running statistics alone."""


def recompute_statistics_(
    model: nn.Module,
    data: Iterable[Any],
    *,
    estimator: str = "pooled",
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Compute the running mean and variance of the batch norms of a model anew, in place: precise batch norm.

    A model whose norms have just become batch norms has none yet, and a moving average follows weights that have
    changed since. Here each batch runs through the model as it is, without gradients, every batch norm with the
    statistics of the batch and all else in evaluation mode.

    Batch norms are those that evaluate as "bn" does: of torch and timm, synchronised, ghost batch norms and batch
    renorms. Frozen ones keep their statistics, and so do norms whose running statistics are of something else or not
    used alone, as those of "bcn", "cn", "sn" and "mabn": theirs move in forward passes in training mode. Norms that no
    rule knows are passed over. When anything goes wrong, nothing is changed.

    Args:
        model: the network.
        data: batches of inputs, or of tuples or lists that begin with the inputs, as a data loader gives, of the size
            used in training. Inputs that are a tuple or list are positional arguments of the model; a mapping is its
            keyword arguments, and goes to the model whole.
        estimator: "pooled", the variance of all elements around the mean of all, or "average", the mean of their
            variances. Default: "pooled".
        progress: called after each batch with the number of batches done.

    Returns:
        Paths of the norms that the data reached; the others keep their statistics.

    Raises:
        ArgumentError: no data, one batch in place of batches, values that are not finite, or an unknown estimator.
        ConversionError: the model has no such batch norm, or cannot run a batch.
        SingleElementError: a batch has one element for each channel of a norm.

    Source: Wu & Johnson 2021 (arXiv:2105.07576), section 3.1.
    """
    if estimator not in ("pooled", "average"):
        raise UnknownNameError("estimator", estimator, ["pooled", "average"])
    check_batches(data)
    norms = _norms(model)
    sums = {path: torch.zeros(4, known.channels, dtype=torch.float64) for path, (_, known) in norms.items()}
    done = 0

    def count(path: str, norm: nn.Module, x: Tensor | None) -> Tensor:
        assert x is not None
        of_batch = _sums(f"norm {path!r}", done + 1, x)
        sums[path] += of_batch.to(sums[path].device)
        return _batch_norm(norm, norms[path][1], x)

    hooks = [
        norm.register_forward_hook(
            lambda norm, inputs, options, output, path=path: count(path, norm, first_tensor(inputs, options)),
            prepend=True,
            with_kwargs=True,
        )
        for path, (norm, _) in norms.items()
    ]
    try:
        with torch.no_grad(), evaluating(model):
            for batch in data:
                run_batch(model, batch, done + 1)
                progress(done := done + 1)
    finally:
        for hook in hooks:
            hook.remove()
    if not done:
        raise ArgumentError("data has no batches; expected some inputs of the model, a few thousand images")
    reached = [path for path in norms if sums[path][0, 0] > 0]
    for path in reached:
        _write(norms[path][0], sums[path], estimator, done)
    return reached


def _norms(model: nn.Module) -> dict[str, tuple[nn.Module, Facts]]:
    """The batch norms whose statistics are computed, by path."""
    norms, others = {}, set()
    for path, module in model.named_modules():
        known = known_facts(module)
        if known is None or not isinstance(module._buffers.get("running_mean"), Tensor):
            continue
        if known.spec in BATCH_NORMS and not known.frozen and known.activation != "own":
            norms[path] = (module, known)
        else:
            others.add(known.spec)
    if others and not norms:
        raise ConversionError(
            f"the model has running statistics in norms {sorted(others)} alone; expected some of {list(BATCH_NORMS)}: "
            f"others move theirs in forward passes in training mode, but for frozen ones, which keep them"
        )
    if not norms:
        raise ConversionError(
            "the model has no batch norm with running statistics; expected some: convert it with to='bn', or do not "
            "call this"
        )
    return norms


def _sums(norm: str, batch: int, x: Tensor) -> Tensor:
    """Elements, and the sums over them that the statistics are made of, ``[4, C]``."""
    elements = x.numel() // x.shape[1]
    if elements < 2:
        raise SingleElementError(
            f"{norm} gets an input {tuple(x.shape)} in batch {batch}, whose elements for each channel are {elements}; "
            f"expected at least 2, to have a variance: leave that batch out, as DataLoader(..., drop_last=True) does"
        )
    variance, mean = torch.var_mean(x.double(), (0, *range(2, x.dim())), correction=0)
    if not bool((mean + variance).isfinite().all()):
        raise ArgumentError(
            f"{norm} gets values that are not finite in batch {batch}; expected finite ones, and nothing is changed: "
            f"look for NaN and inf in that batch, or use float32 where a half precision overflows"
        )
    count = torch.full_like(mean, elements)
    return torch.stack([count, count * mean, count * (variance + mean**2), count * variance * count / (count - 1)])


def _batch_norm(norm: Any, known: Facts, x: Tensor) -> Tensor:
    """The output of a norm with the statistics of the batch."""
    y = F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    for name in known.after:
        y = getattr(norm, name)(y)
    return y if known.activation is None else getattr(F, known.activation)(y)


def _write(norm: nn.Module, sums: Tensor, estimator: str, batches: int) -> None:
    count = sums[0]
    mean, square, average = sums[1:] / count
    variance = average if estimator == "average" else (square - mean**2) * count / (count - 1)
    for name, value in (("running_mean", mean), ("running_var", variance)):
        norm.get_buffer(name).copy_(value)
    if norm._buffers.get("num_batches_tracked") is not None:
        norm.get_buffer("num_batches_tracked").fill_(batches)
