"""Put an operator on the attention layers of a pipeline, see what ran, take it off exactly."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import nn

from .applied import Applied, Bound, applied_to
from .base import AttnProcessor
from .choose import check_options, choose, refuse_second, refuse_weights
from .hosts import denoisers_of
from .layer import Layer
from .layouts import TARGETS, Family, attention_layers, family_of
from .report import Report
from .sequence import group_of
from .tracker import Tracker
from .undo import Undoable

__all__ = ["Handle", "apply", "remove"]

logger = logging.getLogger(__name__)


def apply(
    pipe_or_model: object,
    processor: AttnProcessor | Mapping[str, AttnProcessor],
    *,
    layers: str | Sequence[str] | None = None,
    min_tokens: int = 0,
    steps: tuple[float, float] | None = None,
    strict: bool = False,
    family: Family | None = None,
) -> Handle:
    """Run an operator in the image self-attention and joint layers of a pipeline or its denoiser.

    Grid, text length and timestep are read at every forward, so any size may follow any other. A
    call that cannot take the operator runs the stock softmax and says so in `Handle.report()`. One
    handle covers both denoisers of a pipeline that has two (Wan 2.2).

    processor: one processor for all layers, or {layer name pattern: processor}; the first pattern
        that matches wins.
    layers: pattern or patterns of layer names, such as "down_blocks.0.*"; None is every layer.
    min_tokens: calls with fewer tokens run dense.
    steps: window (start, end) in fractions of the schedule, 0 the noisiest; outside it everything
        runs dense. Step i of n lies at i / n. Given a model without its pipeline, the place is 1 -
        timestep / 1000.
    strict: raise where a layer or call cannot take the operator, instead of running it dense.
    family: the row of the layout table for a model class that has none (docs/layouts.md).

    Raises ValueError for bad options, a pattern that matches nothing, a model that already carries
    a foveate processor, and trained weights for two denoisers; NotImplementedError for a model
    class whose layout cannot even be guessed, and for an operator that cannot run where diffusers'
    context parallelism splits the tokens of the model. Nothing is changed then.
    """
    models, pipe = denoisers_of(pipe_or_model, "apply")
    check_options(min_tokens, steps, family)
    given = (processor, layers, min_tokens, steps, strict, family)
    if len(models) > 1:
        refuse_weights(models, processor)
    with ExitStack() as undo:
        parts = []
        for name, model in models.items():
            denoiser = name if len(models) > 1 else ""
            parts.append(_apply_to(model, pipe, *given, denoiser))
            undo.callback(parts[-1].remove)
        undo.pop_all()
    for part in parts:
        part.meet([other for other in parts if other is not part])
    return Handle(parts)


def _apply_to(
    model: nn.Module,
    pipe: object,
    processor: AttnProcessor | Mapping[str, AttnProcessor],
    layers: str | Sequence[str] | None,
    min_tokens: int,
    steps: tuple[float, float] | None,
    strict: bool,
    family: Family | None,
    denoiser: str,
) -> Applied:
    family = family_of(model) if family is None else family
    attentions = attention_layers(model)
    refuse_second(model, attentions)
    kinds = {name: family.kind(name, module) for name, module in attentions.items()}
    chosen = choose(kinds, processor, layers)
    targets = {name: module for name, module in attentions.items() if kinds[name] in TARGETS}
    for each in dict.fromkeys(chosen.values()):
        each.operator.check_model(targets)
        _check_split(model, each.operator)

    _tell_guess(model, family, strict)
    tracker = Tracker(model, family, pipe, steps)
    bound = []
    for name, module in attentions.items():
        operator = chosen[name].operator if name in chosen else None
        layer = Layer(name, kinds[name], operator, tracker, min_tokens=min_tokens, strict=strict)
        bound.append(Bound(module, layer))
    with ExitStack() as undo:
        applied = Applied(model, tracker, bound, denoiser)
        undo.callback(applied.remove)
        for asked in dict.fromkeys(chosen.values()):
            names = [name for name, value in chosen.items() if value is asked]
            applied.accompany(asked.companion(model, pipe, names))
        undo.pop_all()
    return applied


class Handle(Undoable):
    """What `apply` did: `report` shows it, `remove` or leaving `with` undoes it."""

    def __init__(self, parts: Sequence[Applied]) -> None:
        self._parts = tuple(parts)

    def report(self) -> Report:
        """What ran in each layer, and why a layer ran dense, over the last run of the pipeline.

        Of two denoisers it is that of the first, and prints the second's with it.
        """
        report, *others = self.reports()
        return replace(report, companions=(*report.companions, *others))

    def reports(self) -> list[Report]:
        """One report for each denoiser."""
        return [part.report() for part in self._parts]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The stock processors in place for a while, as while a student's teacher runs."""
        with ExitStack() as paused:
            for part in self._parts:
                paused.enter_context(part.paused())
            yield

    def remove(self) -> None:
        """Put back the very processor objects that were there. Safe to call again."""
        for part in self._parts:
            part.remove()


def remove(pipe_or_model: object) -> None:
    """Take off what `apply` put on a pipeline or its denoiser, without the handle.

    For a handle that was not kept, and for a copy of a pipeline, which has none. Nothing happens
    where no operator is on.
    """
    models, _ = denoisers_of(pipe_or_model, "remove")
    for model in models.values():
        for applied in applied_to(model):
            applied.remove()


def _tell_guess(model: nn.Module, family: Family, strict: bool) -> None:
    if not family.is_guess:
        return
    message = (
        f"{type(model).__name__} has no row in the layout table: its grid is guessed from the "
        "latent, and joint layers stay dense"
    )
    if strict:
        raise NotImplementedError(f"{message}; pass family=Family(...), see docs/layouts.md")
    logger.warning("%s", message)


def _check_split(model: nn.Module, operator: AttnProcessor) -> None:
    reason = None if group_of(model) is None else operator.why_not_split()
    if reason is not None:
        raise NotImplementedError(f"{operator!r} on {type(model).__name__}: {reason}")
