"""Tables in a page of the docs: Markdown, put between two marker lines that name the writer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["markdown_table", "markers", "put_on_page", "split_page"]


def markers(name: str) -> tuple[str, str]:
    """The lines between which the part `name` of a page stands."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def split_page(page: Path, name: str) -> tuple[str, str]:
    """What stands before the first marker of `name`, and after the second.

    Markers are lines of their own: a sentence may name one. Raises ValueError where they are not.
    """
    begin, end = markers(name)
    found = re.fullmatch(
        rf"(.*^){re.escape(begin)}\n(?:.*\n)?{re.escape(end)}(\n.*|)",
        page.read_text(),
        re.DOTALL | re.MULTILINE,
    )
    if found is None:
        raise ValueError(f"{page} lacks the markers {begin} and {end}; put them where tables go")
    return found[1], found[2]


def put_on_page(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name`."""
    before, after = split_page(page, name)
    begin, end = markers(name)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are text already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
