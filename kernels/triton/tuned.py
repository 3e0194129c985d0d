"""The tiles that `foveate tune` measured on this machine: the file they are kept in.

{version of Triton: {key of a `Slot`: {"tiles": {field: value}, and what was measured}}}. A process
reads it once, at its first launch: what it computes never depends on when something was tuned. What
another Triton measured is left alone and not used, since its machine code is another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import triton

__all__ = ["cache_path", "read", "save", "summary", "tuned_tiles"]

Entries = dict[str, dict[str, Any]]


def cache_path() -> Path:
    """FOVEATE_TUNE_CACHE, else foveate/tiles.json in the user's cache folder (XDG_CACHE_HOME)."""
    if given := os.environ.get("FOVEATE_TUNE_CACHE"):
        return Path(given)
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder, "foveate", "tiles.json")


def tuned_tiles(key: str, shipped: Any) -> Any:
    """The tiles kept under a key, of the type of those that are shipped; these if there are none.

    Raises ValueError where the file holds something else than `save` writes.
    """
    path = str(cache_path())
    entry = _entries(path).get(key)
    if entry is None:
        return shipped
    if {*entry["tiles"]} != {field.name for field in fields(shipped)}:
        raise ValueError(_complaint(path, f"{key} has the fields {sorted(entry['tiles'])}"))
    return replace(shipped, **entry["tiles"])


def read(path: Path) -> dict[str, Entries]:
    """All that is kept, by version of Triton; nothing where there is no file.

    Raises ValueError when it is not what `save` writes: tiles that somebody asked for are not
    dropped in silence, and `save` leaves no half-written file.
    """
    # unlike Path.exists, False where a folder may not be looked into
    if not os.path.isfile(path):
        return {}
    try:
        kept = json.loads(path.read_text())
        valid = all(
            type(value) in (int, bool)
            for entries in kept.values()
            for entry in entries.values()
            for value in entry["tiles"].values()
        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(_complaint(path, f"{type(error).__name__}: {error}")) from None
    if not valid:
        raise ValueError(_complaint(path, "tiles must be integers and flags"))
    return kept


def save(path: Path, key: str, tiles: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Adds what was tuned by this Triton, or replaces it; readers see the old file or the new."""
    kept = read(path)
    kept.setdefault(triton.__version__, {})[key] = {"tiles": dict(tiles), **measured}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(kept, indent=1) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def summary(architecture: str) -> str:
    """Whether launches on an architecture take tuned tiles, and from where, in one line."""
    path = cache_path()
    keys = read(path).get(triton.__version__, {})
    count = sum(key.startswith(f"{architecture}/") for key in keys)
    where = f"for {architecture} under Triton {triton.__version__}"
    if count:
        return f"{count} tuned {where}, from {path}"
    return f"as shipped; none is tuned {where} in {path}"


@cache
def _entries(path: str) -> Entries:
    return read(Path(path)).get(triton.__version__, {})


def _complaint(path: Path | str, what: str) -> str:
    return (
        f"{path} must hold tiles as foveate tune writes them, got {what}; "
        "remove it, and run foveate tune again if you want tuned tiles"
    )
