"""What the layers did over a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from .gate import Gate

__all__ = ["Tally"]


class Tally:
    """Counts of one run.

    forwards: of the model.
    arms: {layer: arms over all branches}.
    rows: {layer: {evaluation: arm}} of the first branch of every evaluation.
    entry_bytes: {layer: one kept output}.
    notes: what the user should know, in order.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.arms: dict[str, Counter[str]] = {}
        self.rows: dict[str, dict[int, str]] = {}
        self.branches: dict[Hashable, None] = {}
        self.entry_bytes: dict[str, int] = {}
        self.notes: dict[str, None] = {}

    def count(self, gates: Sequence[Gate], branch: Hashable, index: int) -> None:
        """Count a forward that came to its end."""
        self.forwards += 1
        self.branches[branch] = None
        for gate in gates:
            self.arms.setdefault(gate.name, Counter())[gate.arm] += 1
            self.rows.setdefault(gate.name, {}).setdefault(index, gate.arm)
