"""Batch Normalization with statistics that stay what they are, for fine-tuning (He, Zhang, Ren & Sun 2016)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groupnorm.nn.base import SampleNorm, check_channels, check_count, load_zeros
from groupnorm.ops.spec import accumulation_dtype


class FrozenBatchNorm(SampleNorm):
    r"""Batch norm that computes in training what it computes in evaluation, with running statistics that never move.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma^2_c + \epsilon}} \gamma_c + \beta_c

    with mean :math:`\mu` and variance :math:`\sigma^2` of an earlier training, which come with a state_dict of batch
    norm or with :func:`groupnorm.convert`. In a new layer they are 0 and 1. Scale and shift learn; where they should
    not, as in Detectron2, set ``requires_grad_(False)``.

    It is no batch norm to torch, so that what looks for one in a model, such as ``torch.optim.swa_utils.update_bn`` and
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, leaves it as it is.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to the variance, inside the square root. Default: 1e-5.
        affine: have a scale and a shift per channel. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a negative ``eps``, or ``num_features`` below 1.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.

    Example::

        >>> model = groupnorm.convert(torchvision.models.resnet50(weights="DEFAULT"), "frozen")

    Source: He, Zhang, Ren & Sun 2016 (arXiv:1512.03385), appendix A.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("num_features", num_features)
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        self.num_features = num_features
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
        # Of no use here; with it the state dict has the keys of batch norm.
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0, mean and variance too."""
        super().reset_parameters()
        if "running_mean" in self._buffers:  # not yet while it is made
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Checkpoints of torchvision's frozen norms, and of torch before 0.4.1, have no count.
        load_zeros(self, state_dict, prefix, ("num_batches_tracked",))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        numbers: tuple[Tensor | None, ...] = self.running_mean, self.running_var, self.weight, self.bias
        if any(t is not None and t.dtype != input.dtype for t in numbers):  # ATen takes one dtype for all four
            dtype = accumulation_dtype(input.dtype)
            numbers = tuple(None if t is None else t.to(dtype) for t in numbers)
        mean, variance, weight, bias = numbers
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, self.eps)
