"""What MkDocs asks while it builds the site: the navigation, pages from outside docs/, links.

The pages are written for the repository: they link to files anywhere in it. On the site, links to
pages lead to pages, and links to source files become their text.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import TYPE_CHECKING

import foveate
from foveate import kernels

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["navigation", "on_config", "on_files", "on_page_markdown", "reference", "relink"]

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}
OUTSIDE |= {"CHANGELOG.md": "changelog.md"}
PUBLIC, OPERATORS = "reference/foveate.md", "reference/kernels.md"
# what public functions return, and `print` shows
RETURNED = (
    "attn_processors.apply.Handle",
    "attn_processors.report.Report",
    "attn_processors.report.LayerReport",
    "attn_processors.status.Status",
    "attn_processors.broadcast.install.Broadcast",
    "attn_processors.modulation.run.Run",
)
_LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)"
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Sets the navigation."""
    config.nav = navigation((ROOT / "docs" / "index.md").read_text())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures from outside docs/, and the reference."""
    # the tests read this file without MkDocs
    from mkdocs.structure.files import File

    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=relink(text, "")))
        for picture in _pictures_outside(text):
            files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    for page, text in reference().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page of docs/ with the links of the site."""
    if page.file.generated_by:
        return markdown
    return relink(markdown, normpath(f"docs/{dirname(page.file.src_uri)}"))


def navigation(index: str) -> list:
    """The sections of docs/index.md and the pages in their tables; then README and reference."""
    first, *parts = re.split(r"^## (.+)$", index, flags=re.MULTILINE)
    sections = zip(parts[::2], parts[1::2], strict=True)
    nav: list = [{"Home": "index.md"}, {"README": OUTSIDE["README.md"]}]
    for title, text in sections:
        nav.append({title: re.findall(r"^\| \[[^\]]+\]\(([^)]+\.md)\)", text, re.MULTILINE)})
    nav.append({"Reference": [PUBLIC, OPERATORS]})
    nav.append({"Project": [OUTSIDE["CONTRIBUTING.md"], OUTSIDE["CHANGELOG.md"]]})
    return nav


def relink(markdown: str, folder: str) -> str:
    """The text of a page in a folder of the repository, with links as they are on the site."""
    here = folder.removeprefix("docs").lstrip("/") or "."  # the folder of the page on the site

    def moved(found: re.Match) -> str:
        mark, text, target, anchor = found.groups(default="")
        path = normpath(f"{folder}/{target}".lstrip("/"))
        page = OUTSIDE.get(path)
        if page is None and path.startswith("docs/") and (ROOT / path).is_file():
            page = path.removeprefix("docs/")
        if page is None and mark:
            page = path
        return text if page is None else f"{mark}[{text}]({relpath(page, here)}{anchor})"

    return _LINK.sub(moved, markdown)


def reference() -> dict[str, str]:
    """The pages of the reference: an entry for every public name, in the words of its docstring."""
    public = [(name, getattr(foveate, name)) for name in foveate.__all__]
    returned = [_named(path) for path in RETURNED]
    more = [name for name in kernels.__all__ if name not in foveate.__all__]
    operators = [(name, getattr(kernels, name)) for name in more]
    return {
        PUBLIC: "# foveate\n\n"
        + _entries(public)
        + "\n# What they return\n\n"
        + _entries(returned),
        OPERATORS: "# foveate.kernels\n\n" + _entries(operators),
    }


def _named(path: str) -> tuple[str, object]:
    module, _, name = path.rpartition(".")
    return name, getattr(import_module(f"foveate.{module}"), name)


def _entries(names: list[tuple[str, object]]) -> str:
    return "".join(f"::: {one.__module__}.{name}\n\n" for name, one in names)


def _pictures_outside(markdown: str) -> list[str]:
    targets = [found[3] for found in _LINK.finditer(markdown) if found[1]]
    return [target for target in targets if not target.startswith("docs/")]
