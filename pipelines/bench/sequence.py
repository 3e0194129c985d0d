"""The table of docs/sequence.md: bytes that a rank receives in one layer, computed from shapes.

python -P -m foveate.pipelines.bench.sequence docs/sequence.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ...kernels.layout import TokenLayout
from ...kernels.sequence import Shard, foveated_bytes, gathered_bytes, local_bytes, ulysses_bytes
from ..page import markdown_table, put_on_page

__all__ = ["NAME", "exchange_table"]

NAME = "exchanged bytes"
# FLUX.1: 24 heads of 128, 512 text tokens, 16 pixels a token; bf16, batch of one
_COST = {"heads": 24, "dim": 128, "dtype": torch.bfloat16}
_TEXT = 512
_SIDES = {1024: 64, 2048: 128, 4096: 256}
_RANKS = (2, 4, 8)
_SCHEMES: dict[str, Callable[..., int]] = {
    "local 8": partial(local_bytes, radius=8),
    "local 16": partial(local_bytes, radius=16),
    "foveated 8": partial(foveated_bytes, radius=8),
    "foveated 8, two levels": partial(foveated_bytes, radius=8, levels=2),
    "Ulysses": ulysses_bytes,
    "gather K and V": gathered_bytes,
}


def exchange_table() -> str:
    """Rows of sizes and ranks, columns of schemes; MB (10^6 bytes) of the rank that gets most."""
    rows = [
        [f"{px} px", str(ranks), *(f"{_most(scheme, side, ranks):.1f}" for scheme in _SCHEMES)]
        for px, side in _SIDES.items()
        for ranks in _RANKS
    ]
    return markdown_table(["picture", "ranks", *_SCHEMES], rows)


def _most(scheme: str, side: int, ranks: int) -> float:
    layout = TokenLayout(text=_TEXT, grid=(1, side, side))
    shards = (Shard.even(layout, ranks, rank, splits_text=True) for rank in range(ranks))
    return max(_SCHEMES[scheme](shard, **_COST) for shard in shards) / 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    put_on_page(parser.parse_args().page, NAME, exchange_table())
