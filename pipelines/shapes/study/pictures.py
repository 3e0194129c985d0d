"""Pictures of several methods for the same captions and seeds, scored: one file a method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....attn_processors.base import AttnProcessor
from ....attn_processors.report import Report
from ..metrics import psnr, score
from ..scene import Ask
from ..training.data import held_out_asks
from .methods import slug

__all__ = ["SEED", "Drawn", "asks_of", "score_methods"]

SEED = 500
DENSE = "dense"


class Drawn(NamedTuple):
    """Pictures [number, height, width, 3] in 0..1, the processor time they took, what ran last."""

    pictures: np.ndarray
    seconds: float
    report: Report


def asks_of(number: int) -> list[Ask]:
    """Unseen captions, a third each of one, two and three objects."""
    counts = [number // 3 + (i < number % 3) for i in range(3)]
    return [ask for i, n in enumerate(counts) for ask in held_out_asks(n, i + 1, SEED + i)]


def score_methods(
    label: str,
    choices: Mapping[str, AttnProcessor | None],
    asks: Sequence[Ask],
    run: Callable[[AttnProcessor | None], Drawn],
    folder: Path,
    dense_path: Path,
) -> None:
    """Write `pictures-label-method.json` for each choice that has none; "dense" comes first.

    `run` draws all asks with a processor, None being the stock attention, whose pictures are kept
    at `dense_path` to compare with.
    """
    paths = {method: folder / f"pictures-{label}-{slug(method)}.json" for method in choices}
    missing = [method for method, path in paths.items() if not path.exists()]
    if missing and not dense_path.exists():
        missing = list(dict.fromkeys([DENSE, *missing]))
    for method in missing:
        drawn = run(choices[method])
        if method == DENSE:
            np.save(dense_path, drawn.pictures.astype(np.float16))
        dense = np.load(dense_path).astype(np.float32)
        rows = [_row(*each) for each in zip(drawn.pictures, dense, asks, strict=True)]
        about = {"method": method, "processor": repr(choices[method]), **_cost(drawn)}
        paths[method].write_text(json.dumps({**about, "rows": rows}))


def _row(picture: np.ndarray, dense: np.ndarray, ask: Ask) -> dict[str, float | None]:
    got = score(picture, ask)
    decibels = round(min(psnr(picture.astype(np.float16).astype(np.float32), dense), 99.0), 2)
    return {
        "objects": got.num_objects,
        "bind": got.bind,
        "count": got.count,
        "rel": got.rel,
        "psnr": decibels,
    }


def _cost(drawn: Drawn) -> dict[str, float]:
    """Seconds a picture; tokens and keys a query of the largest layer, and layers that ran."""
    rows = [row for row in drawn.report.layers if row.tokens is not None]
    top = max(rows, key=lambda row: row.tokens)
    return {
        "seconds": round(drawn.seconds / len(drawn.pictures), 4),
        "tokens": top.tokens,
        "keys": round(top.keys.visited, 1),
        "layers": len(rows),
    }
