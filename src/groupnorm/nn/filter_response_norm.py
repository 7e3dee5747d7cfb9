"""Filter Response Normalization with its Thresholded Linear Unit (Singh & Krishnan 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from groupnorm.errors import SingleElementError
from groupnorm.nn.base import SampleNorm, check_flag, upcast
from groupnorm.ops.moments import per_map, second_moment
from groupnorm.ops.reference import per_channel
from groupnorm.sets import instance_set

_MAP = instance_set()


class FilterResponseNorm(SampleNorm):
    r"""Scales each map by its root mean square, then a learned threshold per channel: norm and activation in one.

    .. math:: y = \frac{x}{\sqrt{\nu^2 + \epsilon}} \gamma_c + \beta_c, \quad z = \max(y, \tau_c)

    with :math:`\nu^2` the mean of the squares over the positions of one channel of one sample. No mean is subtracted;
    the threshold makes up for that. Training and evaluation compute the same.

    On a map of one element :math:`x / \sqrt{x^2 + \epsilon}` is little more than the sign of ``x``, and its gradient
    vanishes. The source learns ``eps`` there: ``learn_eps=True`` adds ``|learned_eps|``, one number for the layer that
    starts at 1e-4. The layer cannot know the size of its maps when it is made, so that is an option; the factory
    (spec "frn"), which makes all layers of a network alike, chooses it.

    Args:
        num_channels: number of channels ``C`` of the input.
        eps: added to the mean square, inside the square root. Default: 1e-6.
        affine: learn a scale and a shift per channel, starting at 1 and 0. Default: True.
        activation: apply the threshold ``tau``, learned per channel from 0. Default: True.
        learn_eps: learn a part of eps; for maps of one element. Default: False.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: ``num_channels`` below 1, a negative ``eps``, or an ``activation`` that is not a bool.
        ShapeError: the input has fewer than two axes or not ``num_channels`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a map has one element and ``learn_eps`` is off.

    Source: Singh & Krishnan 2020 (arXiv:1911.09737), section 3.
    """

    tau: Tensor | None
    learned_eps: Tensor | None

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        affine: bool = True,
        activation: bool = True,
        learn_eps: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_flag("activation", activation)
        check_flag("learn_eps", learn_eps)
        super().__init__(num_channels, eps, affine, device=device, dtype=dtype)
        self.activation, self.learn_eps = activation, learn_eps
        tau = torch.empty(num_channels, device=device, dtype=dtype)
        learned_eps = torch.empty(1, device=device, dtype=dtype)  # FSDP refuses scalars
        self.register_parameter("tau", nn.Parameter(tau) if activation else None)
        self.register_parameter("learned_eps", nn.Parameter(learned_eps) if learn_eps else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to 1, shift and threshold to 0, and the learned part of eps to 1e-4."""
        super().reset_parameters()
        for name, start in (("tau", 0.0), ("learned_eps", 1e-4)):
            parameter = self._parameters.get(name)  # the base class resets before they are there
            if parameter is not None:
                nn.init.constant_(parameter, start)

    def normalize(self, x: Tensor) -> Tensor:
        if self.training and self.learned_eps is None and _MAP.size(x.shape) == 1:
            raise SingleElementError(
                f"input {tuple(x.shape)} has 1 element per map, so of each number only the sign is left; expected at "
                f"least 2, or an eps that is learned: use FilterResponseNorm({self.num_channels}, learn_eps=True)"
            )
        eps = self.eps if self.learned_eps is None else self.eps + upcast(self.learned_eps).abs()
        if x.numel() == 0:  # the mean of no squares is NaN, and so would be the gradient of learned_eps
            return x * eps
        return x * per_map((second_moment(x) + eps).rsqrt(), x)

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if self.tau is None else torch.maximum(y, per_channel(self.tau, y).to(y.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        learned_eps = state_dict.get(f"{prefix}learned_eps")
        if learned_eps is not None and learned_eps.dim() == 0:  # of checkpoints from before it had an axis
            state_dict[f"{prefix}learned_eps"] = learned_eps[None]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}, learn_eps={self.learn_eps}"
