"""Turns the study's files into the table of its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..page import put_on_page

__all__ = ["write_page"]

# what rows and groups begin with, in the order of the page
_GROUPS = ("dense", "PAB", "portable", "stores", "fewer", "peers")
_METHODS = (
    "PAB",
    "the same",
    "every",
    "calibrated, refined",
    "calibrated, order 0 and",
    "calibrated",
    "dense",
    "diffusers' hook",
    "diffusers' TaylorSeer",
    "diffusers' FirstBlockCache",
    "cache-dit",
    "DeepCache",
)
_HEADER = ("method", "calls computed", "PSNR, dB", "worst", "BIND", "seconds", "cache, MB")


def write_page(folder: Path, page: Path) -> None:
    """Put one table for each model, number of prompts and steps between the markers of `page`."""
    found: dict[tuple[str, ...], list[dict]] = {}
    for path in sorted(folder.glob("*-*-*-*.json")):
        model, number, steps, _ = path.stem.split("-", 3)
        found.setdefault((model, number, steps), []).append(json.loads(path.read_text()))
    tables = [_table(*key, rows) for key, rows in sorted(found.items())]
    put_on_page(page, "study", "\n\n".join(tables))


def _table(model: str, number: str, steps: str, rows: list[dict]) -> str:
    name, _, size = model.partition("@")
    place = f"`shapes-{name}`" + (f" at {size} px" if size else "")
    title = f"{place}, {number} prompts, {steps} steps:"
    lines = [f"| {' | '.join(_HEADER)} |", "|" + "---|" * len(_HEADER)]
    rows = sorted(rows, key=_place)
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += [_line(row) for row in rows if row["group"] == group]
        lines.append("|" + " |" * len(_HEADER))
    return "\n".join((title, "", *lines[:-1]))


def _place(row: dict) -> tuple[int, str, int, float]:
    """Groups in their order, those of PAB by their ranges; rows in theirs, more calls first."""
    group, method = row["group"], row["method"]
    return (_first(_GROUPS, group), group, _first(_METHODS, method), -row["computed_share"])


def _first(beginnings: tuple[str, ...], name: str) -> int:
    return next(
        (i for i, start in enumerate(beginnings) if name.startswith(start)), len(beginnings)
    )


def _line(row: dict) -> str:
    cells = (
        row["method"],
        f"{row['computed_share']:.0%}",
        f"{np.mean(row['psnr']):.1f}",
        f"{np.min(row['psnr']):.1f}",
        f"{np.mean(row['bind']):.0%}",
        f"{row['seconds']:.1f}",
        "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}",
    )
    return f"| {' | '.join(cells)} |"
