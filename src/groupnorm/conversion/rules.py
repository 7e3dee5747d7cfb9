"""What a norm of any library tells: which row of the catalog it is, its channels, and what it does besides."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from groupnorm.conversion.followed import after_of
from groupnorm.errors import ArgumentError
from groupnorm.nn.catalog import CATALOG

Rule = TypeVar("Rule", bound=Callable[[Any], "Facts"])


@dataclass(frozen=True)
class Facts:
    """What is known of a norm.

    Attributes:
        spec: its row in :func:`groupnorm.catalog`: "bn", "gn", ...
        channels: number of channels.
        eps: added to the variance.
        number: of groups, examples or parts, where the row has such a number.
        rank: of its input, 2 to 5; 3 where it may be 2 or 3; None: any.
        after: names of the children that its forward applies to the normalised output, in this order.
        activation: applied to the output by the norm itself: "relu", "silu", "gelu"; "own" where it is of its own kind.
        frozen: scale and shift are buffers, or never learn.
    """

    spec: str
    channels: int
    eps: float
    number: int | None = None
    rank: int | None = None
    after: tuple[str, ...] = ()
    activation: str | None = None
    frozen: bool = False


def rule(kind: type[nn.Module] | str) -> Callable[[Rule], Rule]:
    """Teach :func:`groupnorm.convert` a norm of your own.

    Args:
        kind: its class, exactly; or "package.module.Class" of one that is not to be imported.

    Example::

        >>> @groupnorm.convert.rule(MyBatchNorm)
        ... def facts(module):
        ...     return groupnorm.convert.Facts("bn", module.num_features, module.eps, rank=4)
    """

    def register(function: Rule) -> Rule:
        _RULES[kind if isinstance(kind, str) else _name(kind)] = function
        return function

    return register


_RULES: dict[str, Callable[[Any], Facts]] = {}


def facts(module: nn.Module) -> Facts | None:
    """What is known of a norm; None where ``module`` is none that could be exchanged.

    Raises:
        ArgumentError: it seems to be a norm over channels, and no rule knows it.
    """
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = kind.__mro__[1]
    after = after_of(module)
    if after:
        kind = kind.__mro__[1]
    known = _RULES.get(_name(kind))
    if known is not None:
        return _read(known(module), module, after)
    if isinstance(module, _TORCH) or (_SOUNDS_LIKE.search(kind.__name__) and not _wraps(module)):
        raise ArgumentError(
            f"{kind.__module__}.{kind.__qualname__} is a norm that no rule knows; expected one of torch, torchvision, "
            f"timm, transformers or groupnorm: tell what it does with @groupnorm.convert.rule({kind.__name__}), or "
            f"leave it out with where="
        )
    return None


def _read(told: Facts, module: nn.Module, after: tuple[str, ...]) -> Facts:
    """What a rule tells, with the channels that the tensors have: pruning cuts those and leaves the number."""
    names = ("weight",) if CATALOG[told.spec].own_statistics else ("weight", "running_mean")
    tensors = [
        tensor for name in names if (tensor := module._parameters.get(name, module._buffers.get(name))) is not None
    ]
    channels = len(tensors[0]) if tensors and tensors[0].dim() == 1 else operator.index(told.channels)
    number = None if told.number is None else operator.index(told.number)
    return replace(told, channels=channels, number=number, eps=float(told.eps), after=after or told.after)


def _wraps(module: nn.Module) -> bool:
    """Whether a module that is called a norm only calls one of torch within it, which is found by itself."""
    return any(isinstance(child, _TORCH) for child in module.modules())


_TORCH = (_BatchNorm, _InstanceNorm, nn.GroupNorm)
_SOUNDS_LIKE = re.compile(r"(Batch|Instance|Group)_?Norm(\d?d|Act|Affine)?(\d?d)?$|^(Sync)?BN\d?d?$|^InPlaceABN", re.I)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _batch_norm(rank: int | None, spec: str = "bn", after: tuple[str, ...] = ()) -> Callable[[Any], Facts]:
    def read(module: Any) -> Facts:
        return Facts(spec, module.num_features, module.eps, None, rank, after)

    return read


def _frozen(after: tuple[str, ...] = ()) -> Callable[[Any], Facts]:
    def read(module: Any) -> Facts:
        return Facts("frozen", len(module.weight), module.eps, None, 4, after=after, frozen=True)

    return read


def _group_norm(after: tuple[str, ...] = ()) -> Callable[[Any], Facts]:
    def read(module: Any) -> Facts:
        return Facts("gn", module.num_channels, module.eps, module.num_groups, after=after)

    return read


def _own_group_norm(module: Any) -> Facts:
    return Facts("gn", module.num_channels, module.eps, module.num_groups, activation=module.activation)


def _bit(module: Any) -> Facts:
    """Of transformers' BiT: the activation is a child of its own kind, the identity where there is none."""
    return Facts("gn", module.num_channels, module.eps, module.num_groups, after=("activation",))


def _detr(module: Any) -> Facts:
    """Of transformers' detectors: the eps stands in the forward, and nothing on the module tells it."""
    return Facts("frozen", len(module.weight), 1e-5, None, 4, frozen=True)


def _own(spec: str) -> Callable[[Any], Facts]:
    def read(module: Any) -> Facts:
        channels = getattr(module, "num_features", None) or module.num_channels
        number = next(
            (getattr(module, n) for n in ("num_groups", "ghost_size", "num_parts") if hasattr(module, n)), None
        )
        activation = "own" if getattr(module, "activation", False) else None
        return Facts(spec, channels, module.eps, number, activation=activation)

    return read


rule(nn.BatchNorm1d)(_batch_norm(3))
rule(nn.BatchNorm2d)(_batch_norm(4))
rule(nn.BatchNorm3d)(_batch_norm(5))
rule(nn.InstanceNorm1d)(_batch_norm(3, "in"))
rule(nn.InstanceNorm2d)(_batch_norm(4, "in"))
rule(nn.InstanceNorm3d)(_batch_norm(5, "in"))
rule(nn.SyncBatchNorm)(_batch_norm(None, "syncbn"))
rule(nn.GroupNorm)(_group_norm())
for _spec, _row in CATALOG.items():
    if _row.layer.__module__.startswith("groupnorm.") and _row.number != "window" and _row.make is not None:
        rule(_row.layer)(_own_group_norm if _row.layer is CATALOG["gn"].layer else _own(_spec))

rule("torchvision.ops.misc.FrozenBatchNorm2d")(_frozen())
rule("timm.layers.norm_act.FrozenBatchNorm2d")(_frozen())
rule("timm.layers.norm_act.FrozenBatchNormAct2d")(_frozen(("drop", "act")))
rule("timm.layers.norm_act.BatchNormAct2d")(_batch_norm(4, after=("drop", "act")))
rule("timm.layers.norm_act.SyncBatchNormAct")(_batch_norm(None, "syncbn", ("drop", "act")))
rule("timm.layers.norm_act.GroupNormAct")(_group_norm(("drop", "act")))
rule("timm.layers.norm_act.GroupNorm1Act")(_group_norm(("drop", "act")))
rule("timm.layers.norm.GroupNorm")(_group_norm())
rule("timm.layers.norm.GroupNorm1")(_group_norm())

rule("transformers.models.bit.modeling_bit.BitGroupNormActivation")(_bit)
rule("transformers.models.poolformer.modeling_poolformer.PoolFormerGroupNorm")(_group_norm())
for _model, _prefix in {
    "conditional_detr": "ConditionalDetr",
    "d_fine": "DFine",
    "dab_detr": "DabDetr",
    "deformable_detr": "DeformableDetr",
    "deimv2": "Deimv2",
    "detr": "Detr",
    "grounding_dino": "GroundingDino",
    "mm_grounding_dino": "MMGroundingDino",
    "pp_doclayout_v2": "PPDocLayoutV2",
    "pp_doclayout_v3": "PPDocLayoutV3",
    "pp_doclayout_v4": "PPDocLayoutV4",
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetrV2",
    "table_transformer": "TableTransformer",
}.items():
    rule(f"transformers.models.{_model}.modeling_{_model}.{_prefix}FrozenBatchNorm2d")(_detr)
