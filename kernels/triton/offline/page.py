"""Writes the figures: docs/kernels.json for the next comparison, the tables of docs/kernels.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from .rules import SHARED_LIMIT, TENSOR_MEMORY_LIMIT, Row

__all__ = ["read_rows", "render", "version_key", "write"]

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
HEAD = (
    "| variant | GPU | warps | stages | registers | spill, B | shared, KiB | tensor memory "
    "| tensor-core instructions | instructions per score element |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def read_rows(path: Path) -> dict[str, list[Row]]:
    """Rows by version of Triton; nothing when the file does not exist."""
    if not path.exists():
        return {}
    return {
        version: [Row(**row | {"per_element": tuple(row["per_element"])}) for row in rows]
        for version, rows in json.loads(path.read_text()).items()
    }


def _dump(tables: dict[str, list[Row]]) -> str:
    """JSON with one row a line, so that a difference shows what moved."""
    parts = []
    for version, rows in tables.items():
        lines = ",\n".join("  " + json.dumps(asdict(row)) for row in rows)
        parts.append(f" {json.dumps(version)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(row: Row) -> str:
    products = ", ".join(f"{number} {kind}" for kind, number in row.products.items())
    tensor_memory = f"{row.tensor_memory} / {TENSOR_MEMORY_LIMIT}" if row.tensor_memory else ""
    shared = f"{row.shared / 1024:.0f} / {SHARED_LIMIT[row.architecture] // 1024}"
    cells = [
        f"**{row.name}**" if row.default else row.name,
        row.architecture,
        row.num_warps,
        row.num_stages,
        row.registers,
        row.spill,
        shared,
        tensor_memory,
        products,
        ", ".join(f"{number:.1f}" for number in row.per_element),
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _other(version: str, rows: list[Row], main: dict[tuple[str, str], Row]) -> str:
    """One sentence on a further version of Triton, against the one of the tables."""
    both = [(row, main[row.name, row.architecture]) for row in rows]
    ratios = sorted(
        mine / theirs
        for row, other in both
        for mine, theirs in zip(row.per_element, other.per_element, strict=False)
    )
    spills = sum(row.default and row.spill > 0 for row in rows)
    text = f"Triton {version}: {len(rows)} compiled, {spills} defaults spill"
    if ratios:
        middle = ratios[len(ratios) // 2]
        text += (
            f"; instructions per score element are {ratios[0]:.2f} to {ratios[-1]:.2f} times"
            f" those above, {middle:.2f} in the median"
        )
    return text + "."


def version_key(version: str) -> tuple[int, ...]:
    """Versions sort by it: 3.10.0 comes after 3.9.0."""
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def render(tables: dict[str, list[Row]]) -> str:
    """Tables of the newest Triton, one a kernel file; a sentence on every other version."""
    newest, *others = sorted(tables, key=version_key, reverse=True)
    rows = tables[newest]
    lines = [f"Triton {newest}, {len(rows)} compiled. Defaults are in bold.", ""]
    for file, group in groupby(rows, key=lambda row: row.file):
        lines += [f"### {file}", "", *HEAD, *map(_line, group), ""]
    main = {(row.name, row.architecture): row for row in rows}
    for version in others:
        known = [row for row in tables[version] if (row.name, row.architecture) in main]
        lines += [_other(version, known, main), ""]
    return "\n".join(lines)


def write(folder: Path, version: str, rows: Iterable[Row]) -> None:
    """Replaces the rows of `version` in kernels.json and the part of kernels.md between the marks.

    Raises ValueError when kernels.md does not have the two marks.
    """
    page = folder / "kernels.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} must hold {BEGIN} and then {END}, one of them is missing")
    tables = read_rows(folder / "kernels.json") | {version: list(rows)}
    page.write_text(f"{before}{BEGIN}\n\n{render(tables)}\n{END}{after}")
    (folder / "kernels.json").write_text(_dump(tables))
