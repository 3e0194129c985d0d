"""What diffusers' context parallelism splits: the tokens of a model, over the ranks of a group.

`enable_parallelism(config=ContextParallelConfig(...))` puts hooks into a model that give each rank
an even share of the text and of the image or video, each by itself and in raster order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import distributed as dist
from torch import nn

from ..kernels.layout import TokenLayout
from ..kernels.sequence import Exchange, Shard

if TYPE_CHECKING:
    from .trained.base import TrainedAttnProcessor

__all__ = ["check_split", "group_of", "shards_of"]


def group_of(model: nn.Module) -> dist.ProcessGroup | None:
    """The ranks that split the tokens of `model`, None where it is whole."""
    config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    return None if config is None else config._flattened_mesh.get_group()


def shards_of(layouts: Iterable[TokenLayout], exchange: Exchange) -> dict[int, Shard]:
    """Token count on this rank -> what it holds of the call with that layout.

    Reference tokens are split with the image, across its rows, so their calls have no shard.
    """
    whole = (x for x in layouts if not x.extra and x.num_grid >= exchange.ranks)
    shards = (Shard.even(x, exchange.ranks, exchange.rank, splits_text=True) for x in whole)
    return {shard.local.num_tokens: shard for shard in shards}


def check_split(processor: TrainedAttnProcessor) -> None:
    """Raise NotImplementedError where a processor names another implementation than shards have,
    or lacks its trained part.
    """
    if processor.impl not in (None, "torch"):
        raise NotImplementedError(
            f"impl={processor.impl!r} does not run under context parallelism; impl='torch' does"
        )
    processor.require_part()
