"""What layers left behind, by branch and layer, with the bytes it takes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from .stores import Kept, num_bytes

__all__ = ["Cache", "Entry"]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One kept output: of which evaluation, at which timestep, and which evaluation reads it last.

    is_difference: a difference to dense attention, for the arm "correct".
    """

    kept: Kept
    index: int
    timestep: float
    last_read: int
    is_difference: bool

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes(leaf) for leaf in self.kept if leaf is not None)


class Cache:
    """Entries by (branch, layer), newest last, at most two; `held`, `peak` and `freed` in bytes."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Hashable, str], tuple[Entry, ...]] = {}
        self.begin()

    def begin(self) -> None:
        """Drop everything and count anew."""
        self._entries.clear()
        self.held = self.peak = self.freed = 0

    def clear(self) -> None:
        """Drop everything."""
        for key in list(self._entries):
            self._set(key, ())

    def read(self, branch: Hashable, layer: str, index: int) -> Sequence[Entry]:
        """What the layer kept before evaluation `index`, newest last."""
        return [e for e in self._entries.get((branch, layer), ()) if e.index < index]

    def add(self, branch: Hashable, layer: str, entry: Entry) -> None:
        key = (branch, layer)
        earlier = [e for e in self._entries.get(key, ()) if e.index < entry.index]
        alike = [e for e in earlier if e.is_difference == entry.is_difference]
        self._set(key, (*alike[-1:], entry))

    def settle(self, branch: Hashable, index: int) -> None:
        """Drop what no later evaluation reads, now that `branch` is through with this one.

        Other branches of the same evaluation may still be to come.
        """
        for key, entries in list(self._entries.items()):
            done = index if key[0] == branch else index - 1
            self._set(key, tuple(e for e in entries if e.last_read > done))

    def _set(self, key: tuple[Hashable, str], entries: tuple[Entry, ...]) -> None:
        before = self._entries.get(key, ())
        gone = sum(e.num_bytes for e in before if e not in entries)
        self.freed += gone
        self.held += sum(e.num_bytes for e in entries) - sum(e.num_bytes for e in before)
        self.peak = max(self.peak, self.held)
        if entries:
            self._entries[key] = entries
        else:
            self._entries.pop(key, None)

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the model starts empty
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()
