"""One row per normalisation: how it is written, what it shares, where it comes from and when to use it.

The layers are exported from here: what a row names is in :mod:`groupnorm.nn`.
"""

from __future__ import annotations

from torch import nn

from groupnorm.nn.batch_channel_norm import BatchChannelNorm
from groupnorm.nn.batch_group_norm import BatchGroupNorm
from groupnorm.nn.batch_renorm import BatchRenorm
from groupnorm.nn.continual_norm import ContinualNorm
from groupnorm.nn.cross_iteration_batch_norm import CrossIterationBatchNorm
from groupnorm.nn.estimated_batch_channel_norm import EstimatedBatchChannelNorm
from groupnorm.nn.evonorm_b0 import EvoNormB0
from groupnorm.nn.evonorm_s0 import EvoNormS0
from groupnorm.nn.filter_response_norm import FilterResponseNorm
from groupnorm.nn.frozen_batch_norm import FrozenBatchNorm
from groupnorm.nn.general_batch_group_norm import GeneralBatchGroupNorm
from groupnorm.nn.ghost_batch_norm import GhostBatchNorm
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.nn.moving_average_batch_norm import MovingAverageBatchNorm
from groupnorm.nn.norm import WEIGHTS, Norm
from groupnorm.nn.power_norm import PowerNorm
from groupnorm.nn.rms_norm import RMSNorm
from groupnorm.nn.switchable_norm import SwitchableNorm
from groupnorm.nn.sync_batch_norm import SyncBatchNorm
from groupnorm.nn.weight_standardization import WeightStandardization
from groupnorm.nn.within_channel_response_norm import WithinChannelResponseNorm
from groupnorm.sets import (
    EACH,
    Blocks,
    SharedSet,
    Window,
    batch_set,
    general_set,
    ghost_set,
    group_set,
    instance_set,
    layer_set,
    merged_set,
)
from groupnorm.tables import html_table

__all__ = [
    "CATALOG",
    "BatchChannelNorm",
    "BatchGroupNorm",
    "BatchRenorm",
    "ContinualNorm",
    "CrossIterationBatchNorm",
    "EstimatedBatchChannelNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "FrozenBatchNorm",
    "GeneralBatchGroupNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "MovingAverageBatchNorm",
    "Norm",
    "PowerNorm",
    "RMSNorm",
    "SwitchableNorm",
    "SyncBatchNorm",
    "WeightStandardization",
    "WithinChannelResponseNorm",
    "replacements",
]


def replacements() -> list[str]:
    """The specs that ``compare --norms all`` stands for: every norm that can replace a batch norm."""
    return [row.spec for row in CATALOG.values() if row.in_all] + ["ws+bn", "ws+gn"]


def catalog() -> list[Norm]:
    """The rows of the catalog: spec, class, title, paper, axes, advice.

    Example::

        >>> [row.spec for row in catalog() if "sample" in row.axes]
    """
    return _Rows(CATALOG.values())


class _Rows(list[Norm]):
    """The rows, shown as a table."""

    def __repr__(self) -> str:
        width = max((len(row.spec) for row in self), default=0)
        return "\n".join(f"{row.spec:<{width}}  {row.title}: {row.advice}" for row in self)

    def _repr_html_(self) -> str:
        rows = [(row.spec, row.title, row.axes, row.advice, row.paper) for row in self]
        return html_table(f"{len(self)} norms", ("spec", "norm", "shares statistics", "when to use it", "paper"), rows)


CATALOG: dict[str, Norm] = {
    row.spec: row
    for row in (
        Norm(
            "bn",
            nn.BatchNorm2d,
            "Batch Normalization",
            "Ioffe & Szegedy 2015, arXiv:1502.03167",
            lambda n: (batch_set(),),
            "Batches of 16 or more that look alike in training and at test time.",
            lambda c, n, **options: nn.BatchNorm2d(c, **options),
        ),
        Norm(
            "gn",
            GroupNorm,
            "Group Normalization",
            "Wu & He 2018, arXiv:1803.08494",
            lambda n: (group_set(n),),
            "Small batches, and wherever the batch must not matter. gn:8 sets groups, gn:c16 channels a group.",
            lambda c, n, **options: GroupNorm(n, c, **options),
            number="groups",
        ),
        Norm(
            "ln",
            GroupNorm,
            "Layer Normalization",
            "Ba, Kiros & Hinton 2016, arXiv:1607.06450",
            lambda n: (layer_set(),),
            "Recurrent networks and transformers; in convolutional ones GN is usually better.",
            lambda c, n, **options: GroupNorm(1, c, **options),
        ),
        Norm(
            "in",
            GroupNorm,
            "Instance Normalization",
            "Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022",
            lambda n: (instance_set(),),
            "Style transfer and generators; undefined on 1x1 feature maps.",
            lambda c, n, **options: GroupNorm(c, c, **options),
        ),
        Norm(
            "syncbn",
            SyncBatchNorm,
            "Synchronised Batch Normalization",
            "Peng et al. 2018, arXiv:1711.07240",
            lambda n: (batch_set(),),
            "Few images on each of many devices: batch norm over all of them. In one process it is bn.",
            lambda c, n, **options: SyncBatchNorm(c, **options),
            note=" of all processes",
            in_all=False,
        ),
        Norm(
            "frozen",
            FrozenBatchNorm,
            "Frozen Batch Normalization",
            "He, Zhang, Ren & Sun 2016, arXiv:1512.03385",
            lambda n: (batch_set(),),
            "Fine-tuning a network that was trained with batch norm, at any batch size: its statistics stay.",
            lambda c, n, **options: FrozenBatchNorm(c, **options),
            note=" of an earlier training",
            in_all=False,
        ),
        Norm(
            "ghost",
            GhostBatchNorm,
            "Ghost Batch Normalization",
            "Hoffer, Hubara & Soudry 2017, arXiv:1705.08741",
            lambda n: (ghost_set(n),),
            "Very large batches that generalise badly: the noise of a small batch, ghost:16 samples at a time.",
            lambda c, n, **options: GhostBatchNorm(c, n, **options),
            number="examples",
            default=16,
        ),
        Norm(
            "brn",
            BatchRenorm,
            "Batch Renormalization",
            "Ioffe 2017, arXiv:1702.03275",
            lambda n: (batch_set(),),
            "Batches that are small or alike, at batch norm's cost at test time; batches of 4 rather than of 2.",
            lambda c, n, **options: BatchRenorm(c, **options),
            note=", corrected towards the running ones",
        ),
        Norm(
            "mabn",
            MovingAverageBatchNorm,
            "Moving Average Batch Normalization",
            "Yan et al. 2020, arXiv:2001.06838",
            lambda n: (batch_set(),),
            "Batches of 1 to 4 and a test time that folds into the convolution; best after centred filters (ws+mabn).",
            lambda c, n, **options: MovingAverageBatchNorm(c, **options),
            shares="mean square",
            note=", of the last 32 samples",
            restarts=True,
        ),
        Norm(
            "cbn",
            CrossIterationBatchNorm,
            "Cross-Iteration Batch Normalization",
            "Yao et al. 2021, arXiv:2002.05712",
            lambda n: (batch_set(),),
            "Detection with few images per device and convolutions before the norms; needs groupnorm.wire_(model).",
            lambda c, n, **options: CrossIterationBatchNorm(c, **options),
            note=", of this and the 3 iterations before",
        ),
        Norm(
            "gbgn",
            GeneralBatchGroupNorm,
            "Batch/Group Normalization",
            "Summers & Dinneen 2020, arXiv:1906.03548",
            lambda n: (general_set(2, n),),
            "Very small batches in long trainings: group norm over two samples at a time. gbgn:8 sets the groups.",
            lambda c, n, **options: GeneralBatchGroupNorm(c, n, **options),
            number="groups",
            own_statistics=True,
        ),
        Norm(
            "bgn",
            BatchGroupNorm,
            "Batch Group Normalization",
            "Zhou et al. 2020, arXiv:2012.02782",
            lambda n: (merged_set(n),),
            "Small batches: batch norm whose statistics get more elements the fewer the parts, bgn:64 to bgn:1.",
            lambda c, n, **options: BatchGroupNorm(c, n, **options),
            number="parts",
            default=16,
            own_statistics=True,
        ),
        Norm(
            "pn",
            PowerNorm,
            "Power Normalization",
            "Shen et al. 2020, arXiv:2003.07845",
            lambda n: (SharedSet(samples=EACH, channels=Blocks(count=n), positions=EACH), batch_set()),
            "Transformers on text; its 10,000 steps of warm-up need batches that batch norm could take.",
            lambda c, n, **options: PowerNorm(c, n, **options),
            number="groups",
            default=1,
            shares="mean square",
            note=", running after the warm-up",
            own_statistics=True,
            prenormalizes=True,
        ),
        Norm(
            "rms",
            RMSNorm,
            "Root Mean Square Layer Normalization",
            "Zhang & Sennrich 2019, arXiv:1910.07467",
            lambda n: (layer_set(),),
            "In the place of layer norm, without the cost of its mean, as LLaMA and its descendants have it.",
            lambda c, n, **options: RMSNorm(c, **options),
            shares="mean square",
        ),
        Norm(
            "frn",
            FilterResponseNorm,
            "Filter Response Normalization",
            "Singh & Krishnan 2020, arXiv:1911.09737",
            lambda n: (instance_set(),),
            "Small batches, when norm and activation may both change: a scale per map and a learned threshold.",
            # Deep layers of a network may see 1x1 maps, where the source learns eps; a factory cannot know which.
            lambda c, n, **options: FilterResponseNorm(c, learn_eps=True, **options),
            shares="mean square",
            activates=True,
        ),
        Norm(
            "evonorm-s0",
            EvoNormS0,
            "EvoNorm-S0",
            "Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967",
            lambda n: (group_set(n),),
            "Small batches, when norm and activation may both change: a scale of groups and a gate in one.",
            lambda c, n, **options: EvoNormS0(c, n, **options),
            number="groups",
            shares="variance",
            activates=True,
        ),
        Norm(
            "evonorm-b0",
            EvoNormB0,
            "EvoNorm-B0",
            "Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967",
            lambda n: (batch_set(), instance_set()),
            "Large batches, when norm and activation may both change; small ones fail it as they fail batch norm.",
            lambda c, n, **options: EvoNormB0(c, **options),
            shares="variance",
            note="; the larger divides",
            activates=True,
        ),
        Norm(
            "bcn",
            BatchChannelNorm,
            "Batch-Channel Normalization",
            "Qiao et al. 2019, arXiv:1911.09738",
            lambda n: (batch_set(), group_set(n)),
            "Group norm's networks at batches of 16 or more: batch norm before it keeps channels from dying.",
            lambda c, n, **options: BatchChannelNorm(c, n, **options),
            number="groups",
            note="; one after the other",
            own_statistics=True,
        ),
        Norm(
            "bcn-micro",
            EstimatedBatchChannelNorm,
            "Batch-Channel Normalization for Micro-Batches",
            "Qiao et al. 2019, arXiv:1911.09738",
            lambda n: (batch_set(), group_set(n)),
            "The same at one or two samples: statistics of many past batches stand for those of the batch.",
            lambda c, n, **options: EstimatedBatchChannelNorm(c, n, **options),
            number="groups",
            note="; one after the other, the first estimated over past batches",
            own_statistics=True,
        ),
        Norm(
            "sn",
            SwitchableNorm,
            "Switchable Normalization",
            "Luo et al. 2019, arXiv:1806.10779",
            lambda n: (instance_set(), layer_set(), batch_set()),
            "When nobody knows which of the three suits a layer: each layer learns its own mixture.",
            lambda c, n, **options: SwitchableNorm(c, **options),
            note="; mixed",
            own_statistics=True,
        ),
        Norm(
            "cn",
            ContinualNorm,
            "Continual Normalization",
            "Pham, Liu & Hoi 2022, arXiv:2203.16102",
            lambda n: (group_set(n), batch_set()),
            "Tasks that arrive one after another: batch norm of samples that group norm has made alike.",
            lambda c, n, **options: ContinualNorm(c, n, **options),
            number="groups",
            note="; one after the other",
            own_statistics=True,
            prenormalizes=True,
        ),
        Norm(
            "lrn",
            nn.LocalResponseNorm,
            "Local Response Normalization",
            "Krizhevsky, Sutskever & Hinton 2012, NeurIPS",
            lambda n: (SharedSet(EACH, Window(n), EACH),),
            "AlexNet and its time: history, and networks whose weights were trained with it.",
            lambda c, n, **options: nn.LocalResponseNorm(n),  # has no parameters, and an alpha in place of eps
            number="window",
            default=5,
            shares="mean square",
            in_all=False,
        ),
        Norm(
            "lrn-within",
            WithinChannelResponseNorm,
            "Local Response Normalization within a Channel",
            "Jia et al. 2014, arXiv:1408.5093",
            lambda n: (SharedSet(EACH, EACH, Window(n)),),
            "Networks of Caffe that were trained with it: contrast normalisation around each position.",
            lambda c, n, **options: WithinChannelResponseNorm(n),  # has no parameters, and an alpha in place of eps
            number="window",
            default=5,
            shares="mean square",
            in_all=False,
        ),
        Norm(
            "ws",
            WeightStandardization,
            "Weight Standardization",
            "Qiao et al. 2019, arXiv:1903.10520",
            lambda n: (layer_set(),),
            "With gn at small batches: ws+gn, ws+bn, ... in front of any other norm; needs groupnorm.wire_(model).",
            None,
            of=WEIGHTS,
            in_all=False,
        ),
        Norm(
            "none",
            nn.Identity,
            "No normalisation",
            "-",
            lambda n: (),
            "The control: what the network does on its own.",
            lambda c, n, **options: nn.Identity(),
            in_all=False,
        ),
    )
}
