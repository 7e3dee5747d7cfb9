"""From a norm and a row of the catalog to the norm in its place, with the same parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from groupnorm.conversion.followed import follow_
from groupnorm.conversion.rules import Facts
from groupnorm.conversion.surgery import ours
from groupnorm.nn.activation import ACTIVATION_MODULES
from groupnorm.nn.catalog import CATALOG
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.nn.norm import Norm

RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def build(
    row: Norm, number: int | None, old: nn.Module, known: Facts, rank: int | None, backend: str | None = None
) -> nn.Module:
    """The norm of ``row`` in the place of ``old``, which stays as it is.

    The parameters are the very objects of the old norm where both have them, so that optimisers keep them; a scale that
    was a buffer becomes a parameter that does not learn. What only the new norm has starts as in a new layer.

    Args:
        row: of the catalog.
        number: of groups, examples or parts; None: the row's own.
        old: the norm.
        known: what is known of it.
        rank: of its input; None: not known.
        backend: of a group norm; None: that of the old one.
    """
    weight = _original(old, "weight")
    place: dict[str, Any] = {"eps": known.eps}
    for tensor in (weight, *old.buffers(recurse=False)):
        if tensor is not None and tensor.is_floating_point():
            place |= {"device": tensor.device, "dtype": tensor.dtype}
            break
    new = make(row, number, known, weight is not None, rank, **place)
    for name in ("weight", "bias"):
        _move(old, new, name, known.frozen)
    if keeps_statistics(old, known, row, new):
        names = RUNNING[:2] if row.restarts else RUNNING
        new._buffers.update({name: tensor for name in names if (tensor := old._buffers.get(name)) is not None})
        if hasattr(old, "track_running_stats") and hasattr(new, "track_running_stats"):
            new.track_running_stats = old.track_running_stats  # False: they stay what they are
    elif row.spec == "bn" and uses_batch(old):
        new = _without_statistics(new)
    if hasattr(old, "momentum") and hasattr(new, "momentum"):
        new.momentum = old.momentum
    if isinstance(new, GroupNorm):
        new.backend = backend or (old.backend if isinstance(old, GroupNorm) else new.backend)
    children = [(name, child) for name in known.after if (child := old._modules.get(name)) is not None]
    if known.activation not in (None, "own"):
        if hasattr(new, "activation") and row.spec in ("gn", "ln", "in"):
            vars(new)["activation"] = known.activation
        else:
            children.append(("act", ACTIVATION_MODULES[known.activation]()))
    return follow_(new, children).train(old.training)


def make(row: Norm, number: int | None, known: Facts, affine: bool, rank: int | None = None, **place: Any) -> nn.Module:
    """A new norm of a row, as a conversion has it: without the activation that it may contain."""
    if row.spec == "bn":
        return _BATCH_NORMS[known.rank or rank or 4](known.channels, affine=affine, **place)
    assert row.make is not None
    if row.activates:
        place["activation"] = False  # the model's own follows
    norm: nn.Module = row.make(known.channels, row.resolve(known.channels, number), affine=affine, **place)
    return norm


def internal(old: nn.Module, known: Facts) -> frozenset[str] | None:
    """Attributes that ``old``, if it is of the catalog, has from its constructor; None of others."""
    row = CATALOG.get(known.spec)
    if row is None or row.make is None or not ours(old):
        return None
    new = row.make(known.channels, row.resolve(known.channels, known.number), device="meta")
    return frozenset(vars(new)) if isinstance(old, type(new)) else None


def keeps_statistics(old: nn.Module, known: Facts, row: Norm, new: nn.Module) -> bool:
    """Whether ``new``, of ``row``, has running statistics of the same quantity as ``old`` and of the same shapes."""
    return not (CATALOG[known.spec].own_statistics or row.prenormalizes) and _shapes(old) == _shapes(new)


def uses_batch(norm: nn.Module) -> bool:
    """Whether a norm evaluates with the statistics of the batch, because it has no running ones."""
    return isinstance(norm, _BatchNorm) and norm._buffers.get("running_mean") is None


def _without_statistics(norm: nn.Module) -> nn.Module:
    """A new batch norm without the running statistics that it was made with."""
    norm.track_running_stats = False  # type: ignore[assignment]
    norm._buffers.update(dict.fromkeys(RUNNING))
    return norm


def _shapes(norm: nn.Module) -> list[Any]:
    tensors = [norm._buffers.get(name) for name in ("running_mean", "running_var")]
    return [None if tensor is None else tensor.shape for tensor in tensors]


def _move(old: nn.Module, new: nn.Module, name: str, frozen: bool) -> None:
    """Give ``new`` the parameter that ``old`` has under a name, or none if it has none."""
    tensor = _original(old, name)
    if name not in new._parameters or _differs(tensor, new._parameters[name]):
        return
    if tensor is None:
        new._parameters[name] = None
    elif parametrize.is_parametrized(old, name):
        new._parameters[name] = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        for step in old.parametrizations[name]:  # type: ignore[index]
            parametrize.register_parametrization(new, name, step, unsafe=True)
        new.parametrizations[name].original = tensor  # type: ignore[index,union-attr]
    elif isinstance(tensor, nn.Parameter):
        new._parameters[name] = tensor
    else:
        new._parameters[name] = nn.Parameter(tensor, requires_grad=not frozen)


def _differs(tensor: Tensor | None, other: Tensor | None) -> bool:
    """Whether two parameters have other shapes, as a norm of the user's own may have them."""
    return tensor is not None and other is not None and tensor.shape != other.shape


def _original(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer, that under the parametrization where there is one."""
    if parametrize.is_parametrized(module, name):
        tensor: Tensor = module.parametrizations[name].original  # type: ignore[index,union-attr]
        return tensor
    return module._parameters.get(name, module._buffers.get(name))
