"""Attention outputs kept from one step of a sampling to the next, as pyramid attention broadcast.

What is kept is what the attention function returns, before the layer's output projection; a
forecast is affine, so it is the same before and behind it. Everything lives for one sampling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.broadcast import (
    COMPUTE,
    FORECAST,
    MIN_EVALUATIONS,
    REUSE,
    Cache,
    Entry,
    check_every,
    forecast,
    fraction_row,
    last_read,
    recall,
    store_of,
)
from ..kernels.schedule import check_fractions
from .call import AttentionCall
from .steps import Steps

__all__ = ["KINDS", "MODES", "Broadcast", "BroadcastSettings", "Turn"]

MODES = {"forecast": FORECAST, "reuse": REUSE}
KINDS = ("all", "self", "cross")
# in the names of samplers that add noise in every step
_NOISY = ("ancestral", "sde", "lcm", "ddpm", "seeds_", "sa_solver")


@dataclass(frozen=True, kw_only=True, slots=True)
class BroadcastSettings:
    """The options of one node.

    mode: what happens between computed steps, a name in MODES.
    every: every n-th step computes, inside of start_percent..end_percent of this sampling's steps.
    kinds: a name in KINDS; "self" has the joint layers too.
    store: how outputs are held.
    """

    mode: str
    every: int
    start_percent: float
    end_percent: float
    kinds: str
    store: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.kinds not in KINDS:
            raise ValueError(f"kinds must be one of {', '.join(KINDS)}, got {self.kinds!r}")
        check_every("every", self.every)
        check_fractions("start_percent, end_percent", (self.start_percent, self.end_percent))
        store_of(self.store)

    def __str__(self) -> str:
        part = f"{self.start_percent:.0%} to {self.end_percent:.0%} of the steps"
        return f"broadcast, {self.mode}, 1 of {self.every} computed, {part}, {self.kinds} layers"


class Broadcast:
    """What layers left behind in one sampling, by branch and layer."""

    def __init__(self, settings: BroadcastSettings) -> None:
        self.settings = settings
        self.store = store_of(settings.store)
        self.cache = Cache()
        self.begin("")

    def begin(self, sampler: str) -> None:
        """A sampling begins; `sampler` is the name of its function."""
        self.cache.begin()
        self.arms: Counter[str] = Counter()
        self.note = ""
        self._is_noisy = any(part in sampler for part in _NOISY)
        self._row = ""
        self._index = -1
        self._occurrences: Counter[Hashable] = Counter()

    def end(self) -> None:
        """The sampling is over, or broke off: nothing is held any longer."""
        self.cache.clear()

    def evaluate(self) -> None:
        """A sampler asks for one evaluation, of one or more forwards."""
        self._occurrences.clear()

    def turn(
        self, options: Mapping[str, Any], x: torch.Tensor, steps: Steps | None, timestep: float
    ) -> Turn | None:
        """What the layers of this forward do; None where all compute and nothing is kept."""
        uuids = options.get("uuids")
        if steps is None or uuids is None:
            self.note = "ComfyUI does not tell the steps or the prompts here: everything computes"
            return None
        self._row = self._make_row(steps.count)
        if steps.index < self._index:  # noise was added again: what was kept is of another past
            self.cache.clear()
        self._index = steps.index
        branch = (tuple(uuids), tuple(x.shape), x.dtype, x.device, _replaced(options))
        self._occurrences[branch] += 1
        return Turn(self, (*branch, self._occurrences[branch]), steps.index, timestep, self._row)

    def _make_row(self, count: int) -> str:
        if count < MIN_EVALUATIONS:
            self.note = f"useless in {count} steps, fewer than {MIN_EVALUATIONS}: all compute"
        elif self._is_noisy:
            self.note = "the sampler adds noise in every step: reused, not forecast, every 2nd"
        given = self.settings
        return fraction_row(
            count,
            every=given.every,
            window=(given.start_percent, given.end_percent),
            letter=MODES[given.mode],
            is_noisy=self._is_noisy,
        )

    def lines(self) -> list[str]:
        """What the report says."""
        arms, held = self.arms, self.cache.peak / 1e6
        lines = [
            str(self.settings),
            f"{arms[COMPUTE]} calls computed, {arms[REUSE]} reused, {arms[FORECAST]} forecast; "
            f"steps {self._row or 'unknown'}; {held:.1f} MB held at most",
        ]
        return [*lines, self.note] if self.note else lines


class Turn:
    """One forward."""

    def __init__(
        self, broadcast: Broadcast, branch: Hashable, index: int, timestep: float, row: str
    ) -> None:
        self.broadcast = broadcast
        self.branch = branch
        self.index = index
        self.timestep = timestep
        self.row = row
        self._calls: Counter[str] = Counter()

    def answer(
        self, call: AttentionCall, block: str, compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """The output of `compute`, or what an earlier step left behind."""
        kinds = self.broadcast.settings.kinds
        if kinds != "all" and (kinds == "cross") != call.is_cross:
            return compute()
        # a layer is known by its block and its place there; another one of other shape never fits
        self._calls[block] += 1
        layer = (block, self._calls[block], call.q.shape, call.k.shape, call.q.dtype)
        entries = self.broadcast.cache.read(self.branch, layer, self.index)
        can_read = bool(entries) and entries[-1].last_read >= self.index
        arm = self.row[self.index] if can_read else COMPUTE
        if arm == FORECAST and (len(entries) < 2 or entries[0].timestep == entries[1].timestep):
            arm = REUSE
        self.broadcast.arms[arm] += 1
        if arm == COMPUTE:
            out = compute()
            self._keep(layer, out)
            return out
        return self._recall(arm, entries)

    def settle(self) -> None:
        """The forward is over: free what no later step reads.

        A sampler may evaluate a step twice, so what this step reads stays until the next.
        """
        self.broadcast.cache.settle(None, self.index)

    def _recall(self, arm: str, entries: tuple[Entry, ...]) -> torch.Tensor:
        store = self.broadcast.store
        if arm == REUSE:
            return recall(store, entries[-1].kept)[0]
        older, recent = entries
        factor = (self.timestep - recent.timestep) / (recent.timestep - older.timestep)
        # without dimensions it may stay on the CPU, whatever the outputs are on
        factor = torch.tensor(factor, dtype=torch.float64)
        return forecast(store, recent.kept, older.kept, factor)[0]

    def _keep(self, layer: Hashable, out: torch.Tensor) -> None:
        until = last_read(self.row, self.index)
        if until > self.index:
            kept = (self.broadcast.store.pack(out),)
            entry = Entry(kept, self.index, self.timestep, until, is_difference=False)
            self.broadcast.cache.add(self.branch, layer, entry)


def _replaced(options: Mapping[str, Any]) -> tuple:
    """Which blocks other nodes replace in this forward: guidance by skipped layers, and the like.

    Such a forward has the prompt of another one, but other layers.
    """
    replaced = options.get("patches_replace", {})
    return tuple(sorted((kind, *sorted(map(str, blocks))) for kind, blocks in replaced.items()))
