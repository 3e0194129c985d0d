"""Put broadcasting on the attention layers of a pipeline, see what it did, take it off exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from ...kernels.broadcast import store_of
from ..hosts import check_pattern, denoisers_of, matches, pattern_list, set_processor
from ..layer import Layer
from ..layouts import attention_layers
from ..redirect import Redirected
from ..slot import processor_in
from ..undo import Undoable
from .calibrated import CalibratedPlan
from .controller import Controller, Observer
from .gate import Gate
from .kinds import kind_of
from .offload import Offload
from .plan import Plan
from .report import BroadcastReport, report_of
from .run import Run
from .wrapper import Broadcasting, gated

__all__ = ["Attached", "Broadcast", "attach", "broadcast", "layer_kinds"]


def broadcast(
    pipe_or_model: object,
    plan: Plan | str | Path,
    *,
    layers: str | Sequence[str] | None = None,
    store: str = "native",
    offload: bool = False,
    scheduler: object = None,
) -> Broadcast:
    """Reuse or extrapolate attention outputs between steps, as `plan` says, until `remove()`.

    Works around any processor: stock, an IP-Adapter's, or those that `foveate.apply` has put there.
    A call that has nothing valid to reuse computes.

    plan: a FractionPlan, PabPlan or CalibratedPlan, or the JSON file of a calibrated one.
    layers: pattern or patterns of layer names, such as "*.attn1"; None is every layer but the text
        refiners.
    store: how outputs are held: "native", "bf16", "int8" (a scale for 64 channels) or "fp8" (a
        scale for each token).
    offload: hold them in the CPU's memory, fetched one layer ahead; not for compiled models.
    scheduler: what drives a model given without its pipeline; its `timesteps` are watched.

    Raises ValueError for bad options, a model in training mode, a plan for other layers, a
    calibration of a model that has changed since, and a model that is broadcast already; nothing is
    changed then.
    """
    plan = _read_plan(plan)
    models, pipe = denoisers_of(pipe_or_model, "broadcast")
    source = pipe if scheduler is None else scheduler
    with ExitStack() as undo:
        parts = []
        for model in models.values():
            kinds = layer_kinds(model, layers)
            parts.append(attach(model, plan, source, kinds=kinds, store=store, offload=offload))
            undo.callback(parts[-1].remove)
        undo.pop_all()
    for part in parts:
        part.meet([other for other in parts if other is not part])
    return Broadcast(parts)


class Attached:
    """Broadcasting on one model."""

    def __init__(
        self,
        model: nn.Module,
        controller: Controller,
        store: str,
        modules: Mapping[str, nn.Module],
    ) -> None:
        self.name = type(model).__name__
        self.controller = controller
        self._store = store
        self._modules = modules
        self._gates = {gate.name: gate for gate in controller.gates}
        self._refused: dict[str, str] = {}
        for gate in controller.gates:
            self._install(gate)
        self._hooks = [
            model.register_forward_pre_hook(controller.before, with_kwargs=True),
            model.register_forward_hook(controller.after),
        ]

    def _install(self, gate: Gate) -> None:
        module = self._modules[gate.name]
        try:
            set_processor(module, gated(module.processor, gate))
        except NotImplementedError as error:
            self._refused[gate.name] = str(error)

    def meet(self, others: Sequence[Attached]) -> None:
        """Take account of what broadcasts the other denoisers of the pipeline."""
        self.controller.peers = tuple(other.controller for other in others)

    def report(self) -> BroadcastReport:
        """What ran in each layer over the last run."""
        reasons = {name: self._why_not(name) for name in self._modules}
        return report_of(self.controller, self.name, self._store, reasons)

    def _why_not(self, layer: str) -> str:
        """Why the layer is not broadcast now, "" where it is."""
        gate = self._gates.get(layer)
        if gate is None:
            return "not selected"
        present = self._modules[layer].processor
        is_ours = isinstance(present, Broadcasting) and present.gate is gate
        if layer in self._refused or is_ours or not self._hooks:
            return self._refused.get(layer, "")
        return f"processor replaced by {type(present).__name__} since: remove() and broadcast again"

    def remove(self) -> None:
        for gate in self.controller.gates:
            module = self._modules[gate.name]
            present = module.processor
            if isinstance(present, Broadcasting) and present.gate is gate:
                set_processor(module, present.inner)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.controller.close()


class Broadcast(Undoable):
    """What `broadcast` did: `report` shows it, `remove` or leaving `with` undoes it."""

    def __init__(self, parts: Sequence[Attached]) -> None:
        self._parts = list(parts)

    def report(self) -> BroadcastReport:
        """What ran in each layer over the last run; of the first denoiser, if there are two."""
        return self.reports()[0]

    def reports(self) -> list[BroadcastReport]:
        """One report for each denoiser."""
        return [part.report() for part in self._parts]

    def reset(self) -> None:
        """Forget what is kept; for a loop that starts over without `scheduler.set_timesteps`."""
        for part in self._parts:
            part.controller.reset()

    def remove(self) -> None:
        """Put back the very processor objects that were there. Safe to call again."""
        for part in self._parts:
            part.remove()


def attach(
    model: nn.Module,
    plan: Plan,
    source: object,
    *,
    kinds: Mapping[str, str],
    store: str = "native",
    offload: bool = False,
    observe: Observer | None = None,
) -> Attached:
    """Broadcast the layers `kinds` ({layer: kind}) of one model.

    source: the scheduler, or what holds one as `scheduler`.
    """
    modules = attention_layers(model)
    _refuse(model, source, modules, kinds)
    plan.check(model, kinds)
    away = Offload() if offload else None
    gates = [Gate(layer, kind, store_of(store), away) for layer, kind in kinds.items()]
    run, has_operator = Run(source), _Operators(modules)
    controller = Controller(model, plan, run, gates, has_operator, away, observe)
    return Attached(model, controller, store, modules)


class _Operators:
    """Tells whether a layer runs an operator of foveate now that its stock softmax can correct.

    Where the layer is modulated it does not: the difference would hold the modulation as well.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules

    def __call__(self, layer: str) -> bool:
        inner = processor_in(self._modules[layer])
        attend = inner.attend if isinstance(inner, Redirected) else None
        return isinstance(getattr(attend, "__self__", None), Layer)


def _read_plan(plan: Plan | str | Path) -> Plan:
    if isinstance(plan, (str, Path)):
        return CalibratedPlan.load(plan)
    if not isinstance(plan, Plan):
        raise ValueError(
            f"plan must be a FractionPlan, PabPlan or CalibratedPlan or a JSON file, got {plan!r}"
        )
    return plan


def _refuse(
    model: nn.Module, source: object, modules: Mapping[str, nn.Module], kinds: Mapping[str, str]
) -> None:
    if not hasattr(getattr(source, "scheduler", source), "timesteps"):
        raise ValueError(
            f"broadcasting on {type(model).__name__} needs the schedule it is driven by: give the "
            f"pipeline, or broadcast(model, plan, scheduler=...); got {source!r}"
        )
    if model.training:
        raise ValueError(
            f"{type(model).__name__} is in training mode, and outputs of earlier steps carry no "
            "gradient; call eval() on it first"
        )
    for name in kinds:
        if isinstance(modules[name].processor, Broadcasting):
            raise ValueError(f"{name} is broadcast already; call remove() on the earlier handle")


def layer_kinds(model: nn.Module, layers: str | Sequence[str] | None) -> dict[str, str]:
    """{layer: kind} of the layers asked for."""
    every = {name: kind_of(model, name, m) for name, m in attention_layers(model).items()}
    kinds = {name: kind for name, kind in every.items() if kind != "text"}
    patterns = pattern_list(layers)
    for pattern in patterns:
        check_pattern(pattern, every, kinds, "text refiners are not broadcast")
    chosen = {n: k for n, k in kinds.items() if any(matches(n, p) for p in patterns)}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no attention layer for {layers!r}")
    return chosen
