"""One denoiser under broadcasting: before every forward it tells each layer what to do.

Forward pre-hook and forward hook of the model. Position and branch come from the arguments of the
model's own forward, the schedule from the scheduler; nothing is counted across forwards, so
skipped, repeated and interrupted evaluations cannot put it out. Whatever does not fit computes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...kernels.broadcast import COMPUTE, CORRECT, FORECAST, REUSE, Cache, Entry, last_read
from ..layouts import known_family
from .branches import Branch, Branches
from .gate import Gate
from .offload import Offload
from .plan import Plan
from .position import Place, Position
from .run import Run
from .schedule import Schedule
from .tally import Tally

__all__ = ["Controller", "Observer"]

logger = logging.getLogger(__name__)

# (layer, branch, evaluation, the leaves that the layer left behind)
Observer = Callable[[Gate, Branch, int], None]


class Controller:
    """Plan, position, branch and cache of one model.

    has_operator: whether a layer now runs an operator of foveate, which the arm "correct" needs.
    observe: called for every layer that left something behind, after a forward.

    `peers` drive the other denoisers of the pipeline; what they kept for evaluations that this one
    has taken over is freed.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        run: Run,
        gates: Sequence[Gate],
        has_operator: Callable[[str], bool],
        offload: Offload | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.plan = plan
        self.gates = tuple(gates)
        self.cache = Cache()
        self.tally = Tally()
        self.table: dict[str, str] = {}
        self.schedule: Schedule | None = None
        self.peers: tuple[Controller, ...] = ()
        self._run = run
        self._offload = offload
        self._observe = observe
        self._has_operator = has_operator
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._position = Position(_scale_of(model))
        self._branches = Branches()
        self._is_first = True
        self._now: tuple[int, Branch] | None = None
        self._logged: set[str] = set()

    # runs outside the graph of a compiled root module, so reading values here breaks no graph
    @torch.compiler.disable
    def before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: set every gate for this forward."""
        if model.training:
            raise NotImplementedError(
                "broadcast does not run in training mode: outputs of earlier steps carry no "
                "gradient; call eval() on the model, or remove() the broadcast"
            )
        self._let_go()
        self._now = None
        self._follow_schedule()
        if torch.is_grad_enabled():
            self.note("gradients are on: everything computes")
            return
        if self.schedule is None:
            self.note("no schedule: a copy of the model without its pipeline computes everything")
            return
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        place = self._position.locate(arguments)
        if place.is_restart:
            self._restart()
        if self._is_first and place.index != self.schedule.start and not self.peers:
            self._begin_at(place.index)
        self._is_first = False
        for peer in self.peers:
            peer.cache.settle(None, place.index)
        branch = self._branches.name(arguments, is_new=place.is_new)
        self._now = place.index, branch
        self._decide(place, branch)

    @torch.compiler.disable
    def after(self, model: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook: take what the layers left behind."""
        if self._now is None:
            return
        index, branch = self._now
        for gate in self.gates:
            if gate.kept is not None:
                self._take(gate, branch, index)
        self.cache.settle(branch, index)
        self.tally.count(self.gates, branch, index)
        self._let_go()

    def note(self, text: str) -> None:
        """Say something once to the log, and in the report of this run."""
        self.tally.notes[text] = None
        if text not in self._logged:
            self._logged.add(text)
            logger.warning("broadcast: %s", text)

    def reset(self) -> None:
        """Forget everything kept; the next forward begins a run."""
        self.cache.clear()
        self._let_go()
        self._begin(self.schedule)

    def close(self) -> None:
        """Free everything and leave the gates open."""
        self.cache.clear()
        self._let_go()

    def _let_go(self) -> None:
        """Leave the gates open, with nothing of this forward in them."""
        for gate in self.gates:
            gate.rest()
        if self._offload is not None:
            self._offload.begin([])

    def _follow_schedule(self) -> None:
        schedule = self._run.begun()
        if schedule is None:
            return
        self.cache.begin()
        self.tally = Tally()
        self.schedule = schedule
        self.table = self._make_table(schedule)
        self._begin(schedule)

    def _begin(self, schedule: Schedule | None) -> None:
        self._is_first = True
        self._position.begin(() if schedule is None else schedule.timesteps)
        self._branches.begin()

    def _begin_at(self, index: int) -> None:
        """The run leaves out what comes before: plans count from here."""
        self.schedule = replace(self.schedule, start=index)
        self.tally.notes.clear()
        self.table = self._make_table(self.schedule)

    def _restart(self) -> None:
        self.cache.clear()
        self._branches.begin()
        self._is_first = True

    def _make_table(self, schedule: Schedule) -> dict[str, str]:
        layers = {gate.name: gate.kind for gate in self.gates}
        table = self.plan.table(schedule, layers)
        without = [name for name, row in table.items() if CORRECT in row]
        without = [name for name in without if not self._has_operator(name)]
        for name in without:
            table[name] = table[name].replace(CORRECT, COMPUTE)
        if without:
            self.note(f"{len(without)} layers run no operator to correct, and compute")
        for text in self.plan.notes(schedule, layers):
            self.note(text)
        return table

    def _decide(self, place: Place, branch: Branch) -> None:
        factors: dict[tuple[float, float], torch.Tensor] = {}
        for gate in self.gates:
            row = self.table[gate.name]
            following = row[place.index + 1 : place.index + 2]
            # the same in every evaluation of a run, so that a compiled layer has one graph less
            gate.keeps = row.count(COMPUTE) < len(row) or self._observe is not None
            gate.is_anchor = following == CORRECT
            self._choose(gate, row[place.index], place.index, branch, factors)
        if self._offload is not None:
            self._offload.begin([(g, _held(g)) for g in self.gates if g.recent is not None])

    def _choose(
        self,
        gate: Gate,
        arm: str,
        index: int,
        branch: Branch,
        factors: dict[tuple[float, float], torch.Tensor],
    ) -> None:
        """Give the gate its arm and what the arm reads; what cannot be done computes."""
        if arm == COMPUTE:
            return
        entries = self.cache.read(branch, gate.name, index)
        if not entries or entries[-1].last_read < index:
            return
        if entries[-1].is_difference != (arm == CORRECT):
            return
        gate.arm, gate.recent = arm, entries[-1].kept
        if arm != FORECAST:
            return
        if len(entries) < 2 or entries[0].timestep == entries[1].timestep:
            gate.arm = REUSE
            return
        older, recent = (entry.timestep for entry in entries)
        if (older, recent) not in factors:
            value = (self.schedule.timesteps[index] - recent) / (recent - older)
            device = branch.latent[2]
            factors[older, recent] = torch.tensor(value, dtype=torch.float32, device=device)
        gate.older, gate.factor = entries[0].kept, factors[older, recent]

    def _take(self, gate: Gate, branch: Branch, index: int) -> None:
        entry = Entry(
            kept=gate.kept,
            index=index,
            timestep=self.schedule.timesteps[index],
            last_read=last_read(self.table[gate.name], index),
            is_difference=gate.is_anchor,
        )
        self.tally.entry_bytes[gate.name] = entry.num_bytes
        if self._observe is not None:
            self._observe(gate, branch, index)
        if entry.last_read > index:
            self.cache.add(branch, gate.name, entry)
        gate.kept = None


def _held(gate: Gate) -> tuple:
    return (gate.recent,) if gate.older is None else (gate.recent, gate.older)


def _scale_of(model: nn.Module) -> tuple[float, float] | None:
    """From the timesteps that a model of a known family is given to the scheduler's."""
    family = known_family(model)
    return None if family is None else (family.timestep_offset, family.timestep_scale)


def depth(row: str) -> int:
    """Outputs that a layer with this row holds at most, for each branch."""
    return 2 if FORECAST in row else int(row.count(COMPUTE) < len(row))


def predicted_bytes(table: Mapping[str, str], entry_bytes: Mapping[str, int], branches: int) -> int:
    """What a run holds at most, from the size of one output of each layer."""
    sizes = (size * depth(table[layer]) for layer, size in entry_bytes.items())
    return branches * sum(sizes)
