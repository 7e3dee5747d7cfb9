"""Weight Standardization (Qiao, Wang, Liu, Shen & Yuille 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn.base import upcast
from groupnorm.ops.checks import check_eps

__all__ = [
    "WeightStandardization",
    "check_standardizable",
    "is_standardized",
    "standardize_weight_",
    "unstandardize_weight_",
]


class WeightStandardization(nn.Module):
    r"""A parametrization: each output filter of a weight has mean 0 and variance 1.

    .. math:: \hat W_o = \frac{W_o - \mathrm{E}[W_o]}{\sqrt{\mathrm{Var}[W_o] + \epsilon}}

    with mean and biased variance over the ``I = C_in / groups * kh * kw`` weights of an output channel. Gradients flow
    through mean and variance. There is no gain: the norm that follows has one.

    The published codes disagree (see the card): this is the biased variance with ``eps`` inside the root, as timm's,
    whose ``eps`` is 1e-6.

    Args:
        eps: added to the variance, inside the square root. Default: 1e-5.
        out_axis: axis of the output channels: 0, and 1 in a transposed convolution without groups. Default: 0.

    Shape:
        a weight of at least two axes, in and out.

    Source: Qiao et al. 2019 (arXiv:1903.10520), eqs. 4-6.
    """

    _order: tuple[str, ...] = ()  # of the parameters of the layer before it was standardised

    def __init__(self, eps: float = 1e-5, out_axis: int = 0) -> None:
        super().__init__()
        check_eps(eps)
        self.eps, self.out_axis = eps, out_axis

    def forward(self, weight: Tensor) -> Tensor:
        axes = tuple(axis for axis in range(weight.dim()) if axis != self.out_axis)
        variance, mean = torch.var_mean(upcast(weight), dim=axes, correction=0, keepdim=True)
        return ((upcast(weight) - mean) * (variance + self.eps).rsqrt()).to(weight.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}" + (f", out_axis={self.out_axis}" if self.out_axis else "")


def standardize_weight_(module: nn.Module, eps: float = 1e-5) -> nn.Module:
    """Standardise the weight of a convolution or linear layer from now on, in place.

    The parameter stays the same object, under ``parametrizations.weight.original``, so optimisers keep it.

    Args:
        module: any ``nn.Conv*d``, ``nn.ConvTranspose*d`` or ``nn.Linear``.
        eps: added to the variance. Default: 1e-5.

    Returns:
        ``module``.

    Raises:
        ArgumentError: ``eps`` cannot be, or ``module`` has no weight of at least two axes, is standardised already, is
            a transposed convolution with groups, whose weight has no axis of output channels, or has a weight that a
            hook computes.
        SingleElementError: each output channel has one weight, which standardised is 0.
    """
    check_standardizable(module)
    if is_standardized(module):
        raise ArgumentError(
            f"{module} is standardised already; expected a plain weight: use unstandardize_weight_() first"
        )
    _leave_shared_class(module)
    standardization = WeightStandardization(eps, _out_axis(module))
    standardization._order = tuple(module._parameters)
    parametrize.register_parametrization(module, "weight", standardization)
    return module


def check_standardizable(module: nn.Module, path: str = "") -> None:
    """Raise what :func:`standardize_weight_` raises of a weight that cannot be standardised."""
    if "weight" in vars(module):  # a plain tensor that a hook sets before each forward pass
        raise ArgumentError(
            f"the weight of {path or type(module).__name__} is computed by a hook from other tensors, as of pruning or "
            f"the older weight_norm and spectral_norm; expected a parameter: use prune.remove, remove_weight_norm or "
            f"remove_spectral_norm first"
        )
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise ArgumentError(
            f"{type(module).__name__} has no weight of at least two axes; expected a convolution or linear layer"
        )
    if _out_axis(module) and module.groups != 1:
        raise ArgumentError(f"{module} is transposed and has groups={module.groups}; expected groups=1")
    if weight.numel() == weight.shape[_out_axis(module)]:
        raise SingleElementError(
            f"{module} has 1 weight for each output channel, which standardised is 0; expected at least 2: leave this "
            f"layer as it is"
        )


def is_standardized(module: nn.Module) -> bool:
    """Whether the weight of ``module`` is standardised."""
    return _standardization(module) is not None


def unstandardize_weight_(module: nn.Module, *, fold: bool) -> nn.Module:
    """Stop standardising the weight of a module, in place.

    Args:
        module: a module that :func:`standardize_weight_` changed.
        fold: keep the standardised weight, so that the module computes the same as before, for inference or export;
            False gives the weight as it was learned, and leaves other parametrizations of it as they are.

    Returns:
        ``module``.

    Raises:
        ArgumentError: the weight is not standardised, or is to be folded and has other parametrizations too.
    """
    if not is_standardized(module):
        raise ArgumentError(f"{module} is not standardised; expected a module from standardize_weight_()")
    steps: Any = module.parametrizations.weight  # type: ignore[union-attr]
    standardization = _standardization(module)
    assert standardization is not None
    if len(steps) > 1:
        if fold:
            raise ArgumentError(
                f"the weight of {type(module).__name__} has further parametrizations; expected standardisation alone: "
                f"remove the others first, or use fold=False"
            )
        del steps[list(steps).index(standardization)]
        return module
    _leave_shared_class(module)
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=fold)
    parameters = module._parameters  # the weight came back as the last, and optimizers go by the order
    for name in [*standardization._order, *(name for name in parameters if name not in standardization._order)]:
        if name in parameters:
            parameters[name] = parameters.pop(name)
    return module


def _leave_shared_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own, which torch adds properties to and takes them from.

    Its deep copies have the same class, and would gain or lose the property too.
    """
    if parametrize.is_parametrized(module):
        kind: Any = type(module)
        module.__class__ = type(kind)(kind.__name__, kind.__bases__, dict(vars(kind)))


def _out_axis(module: nn.Module) -> int:
    """The axis of a weight that counts the output channels."""
    return 1 if getattr(module, "transposed", False) else 0


def _standardization(module: nn.Module) -> WeightStandardization | None:
    if not parametrize.is_parametrized(module, "weight"):
        return None
    found = module.parametrizations.weight  # type: ignore[union-attr]
    return next((p for p in found if isinstance(p, WeightStandardization)), None)  # type: ignore[union-attr]
