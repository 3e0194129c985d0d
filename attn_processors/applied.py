"""What `apply` changes on one model, and how each change comes off again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .base import Companion
from .layer import Layer
from .layouts import LEFT_ALONE
from .redirect import Redirected, redirect
from .report import Recorder, Report
from .slot import processor_in, replace_processor
from .tracker import Tracker
from .trained.layers import Follower
from .undo import Undoable

__all__ = ["Applied", "Bound", "applied_to"]

_FOLLOWER = "foveate_part"


class Bound:
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
        present = processor_in(self.module)
        held = present if self._is_made_anew(present) else self.ours
        self.ours.attend = self.ours.project = None
        kept = {k: v for k, v in vars(held).items() if k not in ("attend", "project")}
        vars(self.stock).update(kept)
        replace_processor(self.module, held, self.stock)
        # unfusing may put our copy back later, or make new ones of its class
        self.ours.__class__ = type(self.stock)
        self.module._modules.pop(_FOLLOWER, None)
        self.layer.release()

    def _is_made_anew(self, present: object) -> bool:
        """Whether diffusers called our class, as it does where an IP-Adapter comes or goes."""
        return (
            isinstance(present, Redirected)
            and present.attend is None
            and (present.stock_class is type(self.stock))
        )

    def replaced_by(self) -> str | None:
        """Class of the processor that has taken the place of ours, if one has."""
        present = processor_in(self.module)
        return None if self.ours is None or present is self.ours else type(present).__name__


class Applied(Undoable):
    """The operators of one model, and the hooks that serve them.

    It is one of these hooks, so it can be found on the model, and on a copy of the model.

    denoiser: name of the model, where the pipeline has two.
    """

    def __init__(
        self, model: nn.Module, tracker: Tracker, bound: Sequence[Bound], denoiser: str
    ) -> None:
        self.recorder = Recorder([b.layer for b in bound], tracker, denoiser)
        self.companions: list[Companion] = []
        self._bound = list(bound)
        self._hooks = [
            model.register_forward_pre_hook(tracker, with_kwargs=True, prepend=True),
            model.register_forward_pre_hook(self),
            model.register_forward_hook(self.recorder, with_kwargs=True),
        ]
        for b in bound:
            b.install()
            self.recorder.log_once(b.layer.name, b.refused)

    @torch.compiler.disable
    def __call__(self, model: nn.Module, args: tuple) -> None:
        """Forward pre-hook."""
        self.recorder.begin(model, args)

    def accompany(self, companion: Companion | None) -> None:
        """Remove and report `companion` together with this."""
        if companion is not None:
            self.companions.append(companion)

    def meet(self, others: Sequence[Applied]) -> None:
        """Take account of what `apply` did to the pipeline's other denoisers."""
        self.recorder.peers = tuple(other.recorder for other in others)
        for companion in self.companions:
            companion.meet([c for other in others for c in other.companions])

    def report(self) -> Report:
        """What ran in each layer of the model over the last run."""
        replaced = {b.layer.name: b.replaced_by() for b in self._bound}
        replaced = {name: by for name, by in replaced.items() if by is not None}
        return self.recorder.report(replaced, [c.report() for c in self.companions])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The stock processors in place for a while."""
        running = [b for b in self._bound if b.ours is not None]
        for b in running:
            replace_processor(b.module, b.ours, b.stock)
        try:
            yield
        finally:
            for b in running:
                replace_processor(b.module, b.stock, b.ours)

    def remove(self) -> None:
        for companion in self.companions:
            companion.remove()
        for b in self._bound:
            b.undo()
        for hook in self._hooks:
            hook.remove()
        self._bound, self._hooks = [], []


def applied_to(model: nn.Module) -> list[Applied]:
    """What is on the model, or came with the one it is a copy of."""
    return [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Applied)]
