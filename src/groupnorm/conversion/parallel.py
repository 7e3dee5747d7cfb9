"""What DistributedDataParallel does not notice of a conversion: it looks at a model once, when it wraps it."""

from __future__ import annotations

import gc
from collections.abc import Collection

import torch.distributed as dist
from torch import Tensor, nn

from groupnorm.tables import count_of


def unnoticed(model: nn.Module, parameters: Collection[Tensor], buffers: Collection[Tensor]) -> str:
    """What a DistributedDataParallel around ``model`` does not know of it; "" where there is none, or all is as it was.

    Args:
        model: after a conversion.
        parameters: those that it had before.
        buffers: those that it had before.
    """
    now = set(model.parameters())
    come, gone = len(now - set(parameters)), len(set(parameters) - now)
    bare = bool(buffers) and next(model.buffers(), None) is None
    if not (come or gone or bare) or not _wrapped(model):
        return ""
    facts = [
        f"{count_of(come, 'parameter')} more, whose gradients it does not average" if come else "",
        f"{count_of(gone, 'parameter')} less, whose gradients it waits for" if gone else "",
        "no buffers any longer, without which its next forward pass fails" if bare else "",
    ]
    return (
        f"DistributedDataParallel wraps the model since before this conversion, and does not see that it has "
        f"{', and '.join(filter(None, facts))}: wrap it anew, or convert the model before it is wrapped"
    )


def _wrapped(model: nn.Module) -> bool:
    """Whether a DistributedDataParallel of this process has the model within it."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.nn.parallel import DistributedDataParallel

    wrappers = [thing for thing in gc.get_objects() if issubclass(type(thing), DistributedDataParallel)]
    return any(model in set(wrapper.modules()) for wrapper in wrappers)
