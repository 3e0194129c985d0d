"""Turns the files of the quality study into the table of its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...page import markdown_table, put_on_page
from .report import paired, read_files

__all__ = ["write_quality"]

HEADER = (
    "method",
    "BIND",
    "BIND - dense [95 %]",
    "COUNT",
    "REL",
    "PSNR to dense, dB",
    "s / picture",
    "speed",
    "keys / query",
)


def write_quality(folder: Path, page: Path) -> None:
    """Put a table for each model and size between the markers of `page`."""
    pictures = read_files(folder, "pictures")
    cases = dict.fromkeys((model, side) for model, side, _ in sorted(pictures, key=_order))
    tables = []
    for model, side in cases:
        found = {key[2]: content for key, content in pictures.items() if key[:2] == (model, side)}
        tables += [f"### shapes-{model}, {side} px", _table(found)]
    put_on_page(page, "study", "\n\n".join(tables))


def _order(key: tuple[str, ...]) -> tuple:
    return key[0] != "sd", int(key[1]), key[2]


def _table(found: dict[str, dict]) -> str:
    dense = found.pop("dense")
    others = sorted(found.values(), key=lambda one: -_mean(one["rows"], "bind"))
    return markdown_table(HEADER, [_line(one, dense) for one in (dense, *others)])


def _line(one: dict, dense: dict) -> list[str]:
    rows = one["rows"]
    is_dense = one is dense
    decibels = np.median([row["psnr"] for row in rows])
    return [
        one["method"],
        f"{_mean(rows, 'bind'):.1%}",
        "" if is_dense else paired(rows, dense["rows"], "bind"),
        f"{_mean(rows, 'count'):.1%}",
        f"{_mean(rows, 'rel'):.1%}",
        "" if is_dense else f"{decibels:.1f}",
        f"{one['seconds']:.2f}",
        f"{dense['seconds'] / one['seconds']:.2f}x",
        f"{one['keys']:.0f} of {one['tokens']}",
    ]


def _mean(rows: Sequence[dict], metric: str) -> float:
    return float(np.mean([row[metric] for row in rows if row[metric] is not None]))
