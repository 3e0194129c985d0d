"""What a Foveate Attention node asks for: an operator, and where it shall run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..kernels.inputs import check_positive
from .modes import MODES

__all__ = ["Settings", "check_disjoint", "parse_layers"]

_RUN = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The options of one node.

    mode: a name in `MODES`; `radius` and `pool` are in tokens and mean what the mode makes of them.
    start_percent, end_percent: part of the sampling, 0 the noisiest, where the operator runs.
    dense_layers: numbers of the layers left alone, such as "0, 1, 47-49", counted from 0 in the
        order in which a forward of the model calls attention; "" leaves none.
    min_tokens: calls with fewer tokens are left alone.
    verbose: print the report to the console after every sampling.
    """

    mode: str
    radius: int
    pool: int
    start_percent: float
    end_percent: float
    dense_layers: str
    min_tokens: int
    verbose: bool
    dense: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        check_positive("radius", self.radius)
        check_positive("pool", self.pool, least=2)
        check_positive("min_tokens", self.min_tokens, least=0)
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise ValueError(
                "start_percent must be less than end_percent, both from 0 to 1, got "
                f"{self.start_percent:g} and {self.end_percent:g}"
            )
        object.__setattr__(self, "dense", parse_layers(self.dense_layers))

    def __str__(self) -> str:
        options = MODES[self.mode].describe(self.radius, self.pool)
        return f"{self.mode}, {options}, {self.start_percent:.0%} to {self.end_percent:.0%}"


def parse_layers(text: str) -> frozenset[int]:
    """The numbers in "0, 1, 47-49"; ends of a run are included."""
    numbers: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = _RUN.fullmatch(part.replace(" ", ""))
        first, last = (int(end or match[1]) for end in match.groups()) if match else (1, 0)
        if last < first:
            raise ValueError(
                f"dense_layers must be numbers and runs such as '0, 1, 47-49', got {part!r}"
            )
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def check_disjoint(rules: Sequence[Settings]) -> None:
    """Raise ValueError where the steps of two nodes overlap."""
    ordered = sorted(rules, key=lambda rule: rule.start_percent)
    for one, two in zip(ordered, ordered[1:], strict=False):
        if two.start_percent < one.end_percent:
            raise ValueError(
                f"this model already has a Foveate Attention node ({one}) whose steps overlap with "
                f"this one's ({two}): bypass one of them, or give them parts of the sampling that "
                "do not overlap"
            )
