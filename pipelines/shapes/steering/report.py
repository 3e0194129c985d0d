"""The tables of docs/modulation.md, from the rows of every method."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...page import markdown_table, put_on_page
from ..load import MODELS
from ..metrics import paired_bootstrap
from ..study.methods import slug
from .edits import ALONE, EDIT_COLUMNS
from .measure import COLUMNS
from .methods import METHODS, SHARED

__all__ = ["write_edits", "write_report"]


def write_report(folder: Path, page: Path, number: int) -> None:
    """Put the tables of the run over `number` prompts between the markers of `page`."""
    tables = []
    for name in MODELS:
        if (folder / f"rows-{name}-{number}-plain.json").exists():
            tables += _tables(folder, name, number)
    put_on_page(page, "steering", "\n\n".join(tables))


def write_edits(path: Path, page: Path) -> None:
    """Put the table of a file of `edit_rows` between the markers of `page`."""
    found = json.loads(path.read_text())
    lines = [
        [edit, *(_cell(rows, found[ALONE], column) for column in EDIT_COLUMNS)]
        for edit, rows in found.items()
    ]
    put_on_page(page, "edits", markdown_table(["", *map(str.upper, EDIT_COLUMNS)], lines))


def _tables(folder: Path, name: str, number: int) -> list[str]:
    plain = json.loads((folder / f"rows-{name}-{number}-plain.json").read_text())["rows"]
    cost = _read(folder / f"cost-{name}.json")
    lines = []
    for method in (*METHODS, *SHARED):
        content = _read(folder / f"rows-{name}-{number}-{slug(method)}.json")
        if content:
            ratio = f"{cost[method]:.2f}x" if method in cost else ""
            lines.append([method, *(_cell(content["rows"], plain, c) for c in COLUMNS), ratio])
    title = f"`shapes-{name}`, {len(plain)} prompts:"
    tables = [f"{title}\n\n{markdown_table(['', *map(str.upper, COLUMNS), 'CPU time'], lines)}"]
    others = [method for method in cost if method not in (*METHODS, *SHARED, ALONE)]
    if others:
        cells = ["CPU time", *(f"{cost[method]:.2f}x" for method in others)]
        tables.append(f"`shapes-{name}`:\n\n{markdown_table(['', *others], [cells])}")
    entropy = _read(folder / f"entropy-{name}.json")
    if entropy:
        header = ["factor of SelfTemperature", *entropy]
        cells = ["entropy of attention between pixels", *(f"{v:.3f}" for v in entropy.values())]
        tables.append(f"`shapes-{name}`:\n\n{markdown_table(header, [cells])}")
    masks = _read(folder / f"masks-{name}.json")
    if masks:
        header = ["power, margin of AttentionMasks", *masks]
        cells = ["overlap of masks and objects (IOU)", *(f"{v:.3f}" for v in masks.values())]
        tables.append(f"`shapes-{name}`:\n\n{markdown_table(header, [cells])}")
    return tables


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _cell(rows: list[dict], plain: list[dict], column: str) -> str:
    """The mean, and its change against the plain run with the 95 % interval."""
    values = [row[column] for row in rows if row[column] is not None]
    mean = f"{np.mean(values):.3f}"
    if rows == plain:
        return mean
    pairs = [
        (one[column], two[column])
        for one, two in zip(rows, plain, strict=True)
        if one[column] is not None and two[column] is not None
    ]
    change = paired_bootstrap(*zip(*pairs, strict=True))
    return f"{mean} ({change.low:+.2f} to {change.high:+.2f})"
