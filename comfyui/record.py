"""What ran in each layer over the last sampling, and why a layer was left alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ..kernels import TokenLayout
from ..kernels.columns import columns
from ..kernels.counts import KeyCount

__all__ = ["LayerRecord", "Recorder"]

logger = logging.getLogger(__name__)

_HEADER = ("layer", "block", "ran", "tokens", "keys/query", "of dense", "left alone because")
_UNSEEN = (
    "No attention call came by: nothing was sampled with this model yet, a node behind this one "
    "put its own attention in the place of ours, or the model hides its calls from nodes."
)


@dataclass(slots=True)
class LayerRecord:
    """One attention layer: how often the operator ran in it, and why it did not."""

    number: int
    block: str
    ran: int = 0
    layout: TokenLayout | None = None
    keys: KeyCount | None = None
    reasons: Counter[str] = field(default_factory=Counter)

    def cells(self) -> tuple[str, ...]:
        """What a row of the report shows beside the layer's name."""
        share = (f"{self.ran}/{self.ran + self.reasons.total()}",)
        keys = ("", "", "")
        if self.layout is not None and self.keys is not None:
            tokens, visited = self.layout.num_tokens, self.keys.visited
            keys = (str(tokens), f"{visited:.0f}", f"{visited / tokens:.1%}")
        reasons = "; ".join(f"{reason} ({count}x)" for reason, count in self.reasons.items())
        return (*share, *keys, reasons)


class Recorder:
    """Notes of one sampling after the other; `begin` starts anew."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget the sampling before."""
        self.forwards = 0
        self.model = ""
        self.cross_calls = 0
        self.unreadable: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._layers: dict[str | int, LayerRecord] = {}
        self._logged: set[str] = set()

    def layer(self, call_number: int, block: str) -> LayerRecord:
        """The record of a layer, known by its block where the model names it, else by the call.

        A name stays the same where another node skips layers before it.
        """
        key = block or call_number
        if key not in self._layers:
            self._layers[key] = LayerRecord(len(self._layers), block)
        return self._layers[key]

    def warn_once(self, reason: str) -> None:
        """One line in the console for each reason that the user did not choose."""
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("foveate: left alone: %s (more in Foveate Report)", reason)

    def text(self, rules: Sequence[object], notes: Sequence[str] = ()) -> str:
        """The report on what `rules` of operators asked for; `notes` are of the other nodes."""
        lines = [*map(str, rules), *notes]
        layers = list(self._layers.values())
        if not (layers or self.cross_calls or self.unreadable):
            return "\n".join([*lines, _UNSEEN])
        if rules:
            ran = sum(layer.ran > 0 for layer in layers)
            lines += [
                f"{self.model}: ran in {ran} of {len(layers)} layers, {self.forwards} forwards",
                "",
                *columns([_HEADER, *_rows(layers)]),
            ]
            if self.cross_calls:
                lines += ["", f"{self.cross_calls} calls of cross-attention, without operators."]
        else:
            lines += [f"{self.model}: {self.forwards} forwards"]
        lines += [f"{count} calls not read: {why}" for why, count in self.unreadable.items()]
        lines += [
            f"{count} calls without regions or maps: {why}" for why, count in self.refused.items()
        ]
        return "\n".join(lines)


def _rows(layers: list[LayerRecord]) -> list[tuple[str, ...]]:
    """One row for each run of layers in which the same happened."""
    rows = []
    for cells, run in groupby(layers, LayerRecord.cells):
        alike = list(run)
        first, last = alike[0], alike[-1]
        names = ((str(first.number), str(last.number)), (first.block, last.block))
        rows.append((*(a if a == b else f"{a} to {b}" for a, b in names), *cells))
    return rows
