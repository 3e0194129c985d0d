"""Put an operator on the attention layers of a pipeline, see what ran, take it off exactly."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import nn

from .base import AttnProcessor, Companion
from .choose import check_options, choose, refuse_second, refuse_weights
from .hosts import denoisers_of
from .layer import Layer
from .layouts import LEFT_ALONE, TARGETS, Family, attention_layers, family_of
from .redirect import Redirected, redirect
from .report import Recorder, Report
from .sequence import group_of
from .slot import processor_in, replace_processor
from .tracker import Tracker
from .trained.layers import Follower
from .undo import Undoable

__all__ = ["Handle", "apply"]

_FOLLOWER = "foveate_part"

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
    check_options(min_tokens, steps)
    given = (processor, layers, min_tokens, steps, strict, family)
    if len(models) == 1:
        return _apply_to(next(iter(models.values())), pipe, *given)
    refuse_weights(models, processor)
    with ExitStack() as undo:
        handles = []
        for name, model in models.items():
            handles.append(_apply_to(model, pipe, *given, denoiser=name))
            undo.callback(handles[-1].remove)
        undo.pop_all()
    first, *others = handles
    first.take_along(others)
    return first


def _apply_to(
    model: nn.Module,
    pipe: object,
    processor: AttnProcessor | Mapping[str, AttnProcessor],
    layers: str | Sequence[str] | None,
    min_tokens: int,
    steps: tuple[float, float] | None,
    strict: bool,
    family: Family | None,
    denoiser: str = "",
) -> Handle:
    family = family_of(model) if family is None else family
    attentions = attention_layers(model)
    refuse_second(attentions)
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
        bound.append(_Bound(module, layer))
    with ExitStack() as undo:
        handle = Handle(model, tracker, bound, denoiser)
        undo.callback(handle.remove)
        for asked in dict.fromkeys(chosen.values()):
            names = [name for name, value in chosen.items() if value is asked]
            handle.accompany(asked.companion(model, pipe, names))
        undo.pop_all()
    return handle


class _Bound:
    """One attention module, its stock processor, and the redirected copy that takes its place."""

    def __init__(self, module: nn.Module, layer: Layer) -> None:
        self.module = module
        self.layer = layer
        self.stock = processor_in(module)
        self.ours: Redirected | None = None
        self.refused: str | None = None
        if layer.processor is None:
            layer.untouched = LEFT_ALONE.get(layer.kind, "not selected")
        else:
            self._redirect()

    def _redirect(self) -> None:
        try:
            self.layer.bind(self.module)
            project = self.layer.project if self.layer.processor.has_projections else None
            self.ours = redirect(self.stock, self.layer.attend, project)
        except NotImplementedError as error:
            if self.layer.strict:
                raise NotImplementedError(f"{self.layer.name}: {error}") from None
            self.refused = self.layer.untouched = str(error)
            self.layer.processor = None

    def install(self) -> None:
        if self.ours is None:
            return
        replace_processor(self.module, self.stock, self.ours)
        if self.layer.processor.part is not None:
            self.module.add_module(_FOLLOWER, Follower(self.layer.processor.part))

    def undo(self) -> None:
        """Back to the stock object, with what was set meanwhile (backend, adapter scale)."""
        if self.ours is None:
            return
        # unfusing may put our copy back later: without `attend` it is the stock processor
        self.ours.attend = self.ours.project = None
        kept = {k: v for k, v in vars(self.ours).items() if k not in ("attend", "project")}
        vars(self.stock).update(kept)
        replace_processor(self.module, self.ours, self.stock)
        self.module._modules.pop(_FOLLOWER, None)
        self.layer.release()

    def replaced_by(self) -> str | None:
        """Class of the processor that has taken the place of ours, if one has."""
        present = processor_in(self.module)
        return None if self.ours is None or present is self.ours else type(present).__name__


class Handle(Undoable):
    """What `apply` did: `report` shows it, `remove` or leaving `with` undoes it.

    denoiser: name of the model, where the pipeline has two.
    """

    def __init__(
        self, model: nn.Module, tracker: Tracker, bound: list[_Bound], denoiser: str = ""
    ) -> None:
        self._recorder = Recorder([b.layer for b in bound], tracker, denoiser)
        self._bound = bound
        self._companions: list[Companion] = []
        self._others: tuple[Handle, ...] = ()
        self._hooks = [
            model.register_forward_pre_hook(tracker, with_kwargs=True, prepend=True),
            model.register_forward_pre_hook(self._recorder.begin),
            model.register_forward_hook(self._recorder, with_kwargs=True),
        ]
        for b in bound:
            b.install()
            self._recorder.log_once(b.layer.name, b.refused)

    def accompany(self, companion: Companion | None) -> None:
        """Remove and report `companion` together with this."""
        if companion is not None:
            self._companions.append(companion)

    def take_along(self, others: Sequence[Handle]) -> None:
        """Report and remove with this what `apply` did to the pipeline's other denoisers."""
        self._others = tuple(others)
        handles = (self, *others)
        for one in handles:
            rest = [handle for handle in handles if handle is not one]
            one._recorder.peers = tuple(handle._recorder for handle in rest)
            for companion in one._companions:
                companion.meet([c for handle in rest for c in handle._companions])

    def report(self) -> Report:
        """What ran in each layer, and why a layer ran dense, over the last run of the pipeline.

        Of two denoisers it is that of the first, and prints the second's with it.
        """
        report, *others = self.reports()
        return replace(report, companions=(*report.companions, *others))

    def reports(self) -> list[Report]:
        """One report for each denoiser."""
        return [self._own_report(), *(other.report() for other in self._others)]

    def _own_report(self) -> Report:
        replaced = {b.layer.name: b.replaced_by() for b in self._bound}
        replaced = {name: by for name, by in replaced.items() if by is not None}
        return self._recorder.report(replaced, [c.report() for c in self._companions])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The stock processors in place for a while, as while a student's teacher runs."""
        running = [b for b in self._bound if b.ours is not None]
        with ExitStack() as others:
            for other in self._others:
                others.enter_context(other.paused())
            for b in running:
                replace_processor(b.module, b.ours, b.stock)
            try:
                yield
            finally:
                for b in running:
                    replace_processor(b.module, b.stock, b.ours)

    def remove(self) -> None:
        """Put back the very processor objects that were there. Safe to call again."""
        for part in (*self._others, *self._companions):
            part.remove()
        for b in self._bound:
            b.undo()
        for hook in self._hooks:
            hook.remove()
        self._bound, self._hooks = [], []


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
