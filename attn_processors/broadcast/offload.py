"""Cached outputs kept in the CPU's memory, fetched one layer ahead of their use.

It pays where a copy over the bus takes less time than the attention it saves: for self-attention of
large videos, not for cross-attention. Not for compiled graphs, which the copies would cut at every
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...kernels.broadcast import Packed

__all__ = ["Offload"]

Held = tuple[tuple[Packed | None, ...], ...]


class Offload:
    """Moves what layers leave behind to pinned memory, and back in the order they will read it.

    `begin` is told all readers of a forward; `take` hands one what it asked for and starts the copy
    of the next. On a GPU the copies run on a stream of their own.
    """

    def __init__(self) -> None:
        self._readers: list[tuple[object, Held]] = []
        self._ahead: dict[int, Held] = {}
        self._device: torch.device | None = None
        self._stream: Any = None

    @torch.compiler.disable
    def away(self, leaves: tuple[Packed | None, ...]) -> tuple[Packed | None, ...]:
        """Copies on the CPU; on a GPU without waiting for them."""
        return tuple(None if leaf is None else self._leaf_away(leaf) for leaf in leaves)

    def begin(self, readers: Sequence[tuple[object, Held]]) -> None:
        """Name what the coming forward will `take`, in order; the first copy starts now."""
        self._readers, self._ahead = list(readers), {}
        self._fetch(0)

    @torch.compiler.disable
    def take(self, reader: object) -> Held:
        """What `reader` holds, back on the device; the next reader's copy starts."""
        place = next(i for i, (name, _) in enumerate(self._readers) if name is reader)
        self._fetch(place)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        held = self._ahead.pop(place)
        if self._stream is not None:
            for part in _parts(held):
                part.record_stream(torch.cuda.current_stream(self._device))
        self._fetch(place + 1)
        return held

    def _leaf_away(self, leaf: Packed) -> Packed:
        self._device = leaf.parts[0].device
        is_cuda = self._device.type == "cuda"
        if is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        copies = []
        for part in leaf.parts:
            copy = torch.empty_like(part, device="cpu", pin_memory=is_cuda)
            copies.append(copy.copy_(part, non_blocking=is_cuda))
        return Packed(tuple(copies), leaf.dtype)

    def _fetch(self, place: int) -> None:
        if place >= len(self._readers) or place in self._ahead:
            return
        if self._stream is None:
            self._ahead[place] = self._back(place)
            return
        # after the copies away, which run on the main stream
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._ahead[place] = self._back(place)

    def _back(self, place: int) -> Held:
        return tuple(
            tuple(None if leaf is None else self._leaf_back(leaf) for leaf in leaves)
            for leaves in self._readers[place][1]
        )

    def _leaf_back(self, leaf: Packed) -> Packed:
        parts = (part.to(self._device, non_blocking=True) for part in leaf.parts)
        return Packed(tuple(parts), leaf.dtype)

    def __getstate__(self) -> dict[str, Any]:
        # a copied model has no forward under way, and streams do not pickle
        return {"_readers": [], "_ahead": {}, "_device": self._device, "_stream": None}


def _parts(held: Held) -> list[torch.Tensor]:
    return [part for leaves in held for leaf in leaves if leaf is not None for part in leaf.parts]
