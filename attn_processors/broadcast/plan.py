"""Which layer computes in which evaluation: the portable plan, and plans written out in full.

A plan turns the schedule of a run into one row of arms for each layer, before the run; nothing is
decided from tensors, so a decision costs nothing and is the same on every rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ...kernels.broadcast import (
    COMPUTE,
    CORRECT,
    FORECAST,
    MIN_EVALUATIONS,
    REUSE,
    check_every,
    check_row,
    fraction_row,
)
from ...kernels.schedule import check_fractions
from .kinds import KINDS
from .schedule import Schedule

__all__ = [
    "FractionPlan",
    "Plan",
    "TablePlan",
    "check_layers",
    "too_few",
    "unknown_layers",
]

_ARM_LETTERS = {"reuse": REUSE, "forecast": FORECAST, "correct": CORRECT}


class Plan(ABC):
    """What `foveate.broadcast` follows."""

    @abstractmethod
    def table(self, schedule: Schedule, layers: Mapping[str, str]) -> dict[str, str]:
        """{layer: row of arms, one an evaluation}; `layers` is {layer: kind}."""

    def notes(self, schedule: Schedule, layers: Mapping[str, str]) -> tuple[str, ...]:
        """What the user should know about this plan on this schedule."""
        return ()

    def check(self, model: object, layers: Mapping[str, str]) -> None:
        """Raise ValueError where the plan is not for this model and these layers."""
        return


@dataclass(frozen=True, kw_only=True)
class FractionPlan(Plan):
    """Every `every`-th evaluation computes, inside a window on the fraction i / n of the run.

    A window on fractions means the same for every scheduler and model, unlike one on timesteps,
    which a shifted schedule crosses in a third of its steps. The last two evaluations compute: what
    is wrong there nothing repairs. Runs of fewer than 8 evaluations compute everything. Where the
    scheduler adds noise in every step, outputs are reused and not forecast, every second one.

    every: of spatial layers, and of the others unless they are given.
    window: (start, end), 0 the noisiest.
    arm: what happens between: "reuse", "forecast" or "correct".
    """

    every: int = 2
    temporal: int | None = None
    cross: int | None = None
    window: tuple[float, float] = (0.1, 0.85)
    arm: str = "forecast"

    def __post_init__(self) -> None:
        check_every("every", self.every)
        for name in ("temporal", "cross"):
            if getattr(self, name) is not None:
                check_every(name, getattr(self, name))
        check_fractions("window", self.window)
        if self.arm not in _ARM_LETTERS:
            raise ValueError(f"arm must be {', '.join(_ARM_LETTERS)}, got {self.arm!r}")

    def table(self, schedule: Schedule, layers: Mapping[str, str]) -> dict[str, str]:
        rows = {kind: self._row(schedule, kind) for kind in KINDS}
        return {layer: rows[kind] for layer, kind in layers.items()}

    def _row(self, schedule: Schedule, kind: str) -> str:
        every = {"temporal": self.temporal, "cross": self.cross}.get(kind)
        return COMPUTE * schedule.start + fraction_row(
            schedule.remaining,
            every=self.every if every is None else every,
            window=self.window,
            letter=_ARM_LETTERS[self.arm],
            is_noisy=schedule.is_noisy,
        )

    def notes(self, schedule: Schedule, layers: Mapping[str, str]) -> tuple[str, ...]:
        if schedule.remaining < MIN_EVALUATIONS:
            return (too_few(schedule),)
        if schedule.is_noisy:
            return (f"{schedule.name} adds noise in every step: reused, not forecast, every 2nd",)
        return ()


@dataclass(frozen=True)
class TablePlan(Plan):
    """A row for each layer, written out; layers without one compute."""

    rows: Mapping[str, str] = field(default_factory=dict)

    def table(self, schedule: Schedule, layers: Mapping[str, str]) -> dict[str, str]:
        for row in self.rows.values():
            check_row(row, len(schedule))
        return {layer: self.rows.get(layer, COMPUTE * len(schedule)) for layer in layers}

    def notes(self, schedule: Schedule, layers: Mapping[str, str]) -> tuple[str, ...]:
        return unknown_layers(self.rows, layers)

    def check(self, model: object, layers: Mapping[str, str]) -> None:
        check_layers(self.rows, layers)


def too_few(schedule: Schedule) -> str:
    """Why nothing is broadcast in so short a run."""
    return (
        f"useless here: a run of {schedule.remaining} evaluations, fewer than {MIN_EVALUATIONS}, "
        "changes too much from one to the next; everything computes"
    )


def unknown_layers(planned: Iterable[str], layers: Mapping[str, str]) -> tuple[str, ...]:
    """A note on layers that have no plan and compute, if there are any."""
    missing = [name for name in layers if name not in set(planned)]
    if not missing:
        return ()
    return (f"{len(missing)} layers are not in the plan and compute, such as {missing[0]}",)


def check_layers(planned: Collection[str], layers: Mapping[str, str]) -> None:
    """Raise ValueError where a plan knows none of the layers."""
    if not set(planned) & set(layers):
        raise ValueError(
            f"the plan is for other layers: it has {', '.join([*planned][:1]) or 'none'}, "
            f"the model has {', '.join([*layers][:1])}; calibrate this model"
        )
