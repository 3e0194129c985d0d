"""Writes a part: its figures as JSON, its tables as Markdown, its plot, and its place in a page."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..page import put_on_page, split_page
from .parts import Part
from .plots import plot_operators

__all__ = ["check_page", "write_page", "write_part"]


def write_part(part: Part, folder: Path, page: Path | None = None) -> list[Path]:
    """Write `<name>.json`, a plot `.png` of what was timed, and the tables: into the page or `.md`.

    Returns what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / f"{part.name}.json"
    figures.write_text(json.dumps(part.fields, indent=1) + "\n")
    written = [figures]
    if part.timed:
        written.append(folder / f"{part.name}.png")
        plot_operators(part.timed, part.title, written[-1])
    if page is None:
        written.append(folder / f"{part.name}.md")
        written[-1].write_text(part.text + "\n")
    else:
        write_page(part, folder, page)
        written.append(page)
    return written


def check_page(page: Path, name: str) -> None:
    """Raise ValueError unless a page has the markers of a part."""
    if not page.is_file():
        raise ValueError(f"--page names a file that does not exist: {page}")
    split_page(page, name)


def write_page(part: Part, folder: Path, page: Path) -> None:
    """Put the tables of a part, and its plot out of `folder`, between its markers in a page."""
    text = part.text
    if part.timed:
        plot = os.path.relpath(folder / f"{part.name}.png", page.parent)
        text += f"\n\n![time and speed over tokens]({Path(plot).as_posix()})"
    put_on_page(page, part.name, text)
