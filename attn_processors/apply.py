"""Put an operator on the attention layers of a pipeline, see what ran, take it off exactly."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from torch import nn

from .base import AttnProcessor
from .layer import Layer
from .layer_weights import Follower
from .layouts import attention_layers, family_of
from .redirect import Redirected, redirect
from .report import Recorder, Report
from .tracker import Tracker

__all__ = ["Handle", "apply"]

_TARGETS = ("self", "joint")
_FOLLOWER = "foveate_part"
_LEFT_ALONE = {"cross": "cross-attention", "text": "text refiner"}


def apply(
    pipe_or_model: object,
    processor: AttnProcessor | Mapping[str, AttnProcessor],
    *,
    layers: str | Sequence[str] | None = None,
    min_tokens: int = 0,
    steps: tuple[float, float] | None = None,
    strict: bool = False,
) -> Handle:
    """Run an operator in the image self-attention and joint layers of a pipeline or its denoiser.

    Grid, text length and timestep are read at every forward, so any size may follow any other. A
    call that cannot take the operator runs the stock softmax and says so in `Handle.report()`.

    processor: one processor for all layers, or {layer name pattern: processor}; the first pattern
        that matches wins.
    layers: pattern or patterns of layer names, such as "down_blocks.0.*"; None is every layer.
    min_tokens: calls with fewer tokens run dense.
    steps: window (start, end) in fractions of the schedule, 0 the noisiest; outside it everything
        runs dense. Step i of n lies at i / n. Given a model without its pipeline, the place is 1 -
        timestep / 1000.
    strict: raise where a layer or call cannot take the operator, instead of running it dense.

    Raises ValueError for bad options, a pattern that matches nothing and a model that already
    carries a foveate processor; NotImplementedError for a model class of unknown layout. Nothing is
    changed then.
    """
    model, pipe = _denoiser(pipe_or_model)
    family = family_of(model)
    _check_options(min_tokens, steps)
    attentions = attention_layers(model)
    _refuse_second(attentions)
    kinds = {name: family.kind(name, module) for name, module in attentions.items()}
    chosen = _choose(kinds, processor, layers)
    targets = {name: module for name, module in attentions.items() if kinds[name] in _TARGETS}
    for each in {id(value): value for value in chosen.values()}.values():
        each.check_model(targets)

    tracker = Tracker(model, family, pipe, steps)
    bound = []
    for name, module in attentions.items():
        layer = Layer(
            name, kinds[name], chosen.get(name), tracker, min_tokens=min_tokens, strict=strict
        )
        bound.append(_Bound(module, layer))
    return Handle(model, tracker, bound)


class _Bound:
    """One attention module, its stock processor, and the redirected copy that takes its place."""

    def __init__(self, module: nn.Module, layer: Layer) -> None:
        self.module = module
        self.layer = layer
        self.stock = module.processor
        self.ours: Redirected | None = None
        self.refused: str | None = None
        if layer.processor is None:
            layer.untouched = _LEFT_ALONE.get(layer.kind, "not selected")
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
        _set_processor(self.module, self.ours)
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
        if self.module.processor is self.ours:
            _set_processor(self.module, self.stock)
        self.module._modules.pop(_FOLLOWER, None)
        self.layer.release()

    def replaced_by(self) -> str | None:
        """Class of the processor that has taken the place of ours, if one has."""
        present = self.module.processor
        return None if self.ours is None or present is self.ours else type(present).__name__


class Handle:
    """What `apply` did to one model: `report` shows it, `remove` or leaving `with` undoes it."""

    def __init__(self, model: nn.Module, tracker: Tracker, bound: list[_Bound]) -> None:
        self._recorder = Recorder([b.layer for b in bound], tracker)
        self._bound = bound
        self._hooks = [
            model.register_forward_pre_hook(tracker, with_kwargs=True, prepend=True),
            model.register_forward_pre_hook(self._recorder.begin),
            model.register_forward_hook(self._recorder),
        ]
        for b in bound:
            b.install()
            self._recorder.log_once(b.layer.name, b.refused)

    def report(self) -> Report:
        """What ran in each layer, and why a layer ran dense, over the last run of the pipeline."""
        replaced = {b.layer.name: b.replaced_by() for b in self._bound}
        return self._recorder.report({name: by for name, by in replaced.items() if by is not None})

    def remove(self) -> None:
        """Put back the very processor objects that were there. Safe to call again."""
        for b in self._bound:
            b.undo()
        for hook in self._hooks:
            hook.remove()
        self._bound, self._hooks = [], []

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def _set_processor(module: nn.Module, processor: object) -> None:
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor


def _denoiser(pipe_or_model: object) -> tuple[nn.Module, object | None]:
    """The model to change and the pipeline around it, if one was given."""
    if isinstance(pipe_or_model, nn.Module):
        model, pipe = pipe_or_model, None
    else:
        parts = (getattr(pipe_or_model, name, None) for name in ("transformer", "unet"))
        model, pipe = next((part for part in parts if part is not None), None), pipe_or_model
    if model is None:
        raise ValueError(
            f"apply needs a diffusers pipeline or its denoiser, got {type(pipe_or_model).__name__}"
        )
    # torch.compile(model) wraps the module that holds the layers
    return getattr(model, "_orig_mod", model), pipe


def _check_options(min_tokens: int, steps: tuple[float, float] | None) -> None:
    if not isinstance(min_tokens, int) or min_tokens < 0:
        raise ValueError(f"min_tokens must be an integer >= 0, got {min_tokens!r}")
    if steps is None:
        return
    if len(steps) != 2 or not 0 <= steps[0] < steps[1] <= 1:
        raise ValueError(f"steps must be (start, end) with 0 <= start < end <= 1, got {steps!r}")


def _refuse_second(attentions: Mapping[str, nn.Module]) -> None:
    for name, module in attentions.items():
        present = module.processor
        if isinstance(present, AttnProcessor):
            raise ValueError(
                f"{name} already holds {present!r}, put there by set_attn_processor; "
                "set the stock processors back before foveate.apply"
            )
        if isinstance(present, Redirected) and present.attend is not None:
            raise ValueError(
                f"{name} already runs a foveate operator; call remove() on the earlier handle first"
            )


def _choose(
    kinds: Mapping[str, str],
    processor: AttnProcessor | Mapping[str, AttnProcessor],
    layers: str | Sequence[str] | None,
) -> dict[str, AttnProcessor]:
    """Layer name -> its processor, for the layers that shall take one."""
    rules = processor if isinstance(processor, Mapping) else {"*": processor}
    if not rules:
        raise ValueError("the mapping of patterns to processors is empty")
    for pattern, value in rules.items():
        if not isinstance(value, AttnProcessor):
            raise ValueError(f"expected a foveate processor object for {pattern!r}, got {value!r}")
    wanted = ["*"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    targets = [name for name, kind in kinds.items() if kind in _TARGETS]
    for pattern in (*rules, *wanted):
        _check_pattern(pattern, kinds, targets)
    chosen = {}
    for name in targets:
        rule = next((value for pattern, value in rules.items() if _matches(name, pattern)), None)
        if rule is not None and any(_matches(name, pattern) for pattern in wanted):
            chosen[name] = rule
    if not chosen:
        raise ValueError(f"no layer matches both the mapping {list(rules)} and layers={wanted}")
    return chosen


def _matches(name: str, pattern: str) -> bool:
    # diffusers' own names for processors end in ".processor"
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f"{name}.processor", pattern)


def _check_pattern(pattern: str, kinds: Mapping[str, str], targets: Iterable[str]) -> None:
    if any(_matches(name, pattern) for name in targets):
        return
    others = sorted({kind for name, kind in kinds.items() if _matches(name, pattern)})
    if others:
        raise ValueError(
            f"{pattern!r} matches only {' and '.join(others)} layers; "
            "operators run in self-attention and joint layers"
        )
    near = difflib.get_close_matches(pattern, list(kinds), n=3, cutoff=0.0)
    raise ValueError(f"{pattern!r} matches no attention layer; near: {', '.join(near)}")
