"""What each layer did under `modulate`, and at what cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...kernels.columns import columns
from .lowering import Lowered

__all__ = ["Explanation", "LayerExplanation", "Record"]


@dataclass(frozen=True, kw_only=True)
class LayerExplanation:
    """One attention layer over the last run.

    did: what was done -> how often, such as "RegionBind + Emphasize: query split".
    calls: attention calls made for them, one each being what the stock layer makes.
    extra_bytes: the most memory that one of them took beyond a plain call.
    left: why calls were left alone -> how many.
    """

    layer: str
    kind: str
    did: dict[str, int]
    calls: int
    extra_bytes: int
    left: dict[str, int]


@dataclass(frozen=True)
class Explanation:
    """The layers of one model; `print` shows a table.

    idle: a sentence for every modulation whose window no step of the run lay in.
    """

    layers: tuple[LayerExplanation, ...]
    idle: tuple[str, ...] = ()

    def __str__(self) -> str:
        header = ("layer", "kind", "did", "calls", "extra MB", "left alone")
        return "\n".join([*columns([header, *map(_cells, self.layers)]), *self.idle])


def _cells(row: LayerExplanation) -> tuple[str, ...]:
    return (
        row.layer,
        row.kind,
        "; ".join(f"{what} ({count}x)" for what, count in row.did.items()) or "-",
        str(row.calls) if row.calls else "",
        f"{row.extra_bytes / 1e6:.2f}" if row.did else "",
        "; ".join(f"{why} ({count}x)" for why, count in row.left.items()),
    )


class Record:
    """Notes of one layer, begun anew with every run."""

    def __init__(self, layer: str, kind: str) -> None:
        self.layer = layer
        self.kind = kind
        self.begin(0)

    def begin(self, run: int) -> None:
        """A call of this run begins."""
        if getattr(self, "_run", None) == run:
            return
        self._run = run
        self._did: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._calls = self._bytes = 0

    def note(self, names: Sequence[str], lowered: Lowered) -> None:
        self._did[f"{' + '.join(names)}: {lowered.form}"] += 1
        self._calls += lowered.calls
        self._bytes = max(self._bytes, lowered.extra_bytes)

    def leave(self, reason: str) -> None:
        self._left[reason] += 1

    def explain(self) -> LayerExplanation:
        return LayerExplanation(
            layer=self.layer,
            kind=self.kind,
            did=dict(self._did),
            calls=self._calls,
            extra_bytes=self._bytes,
            left=dict(self._left),
        )
