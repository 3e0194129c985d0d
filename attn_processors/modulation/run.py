"""`foveate.modulate`: steer a stock pipeline by phrase and region, see what was done, undo it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...kernels.map_store import MapStore
from ..base import AttnProcessor
from ..hosts import denoiser_of
from ..layer import Layer
from ..layouts import attention_layers, family_of
from ..redirect import Redirected, redirect
from ..slot import processor_in, replace_processor
from ..tracker import Tracker
from ..undo import Undoable
from .attention_masks import MaskStore
from .base import Composed, Modulation, Reader, flatten
from .conflicts import check_conflicts, check_operator, choose_layers
from .explain import Explanation
from .layer import ModulatedLayer
from .moment import Moment
from .probe import Probe
from .prompts import Prompts
from .text_axis import TextAxis

__all__ = ["Run", "modulate"]


def modulate(pipe: object, modulations: Sequence[Modulation | Composed]) -> Run:
    """Edit what the pipeline's attention layers attend to, until `remove` or the end of `with`.

    pipe: a stock pipeline; also one that `foveate.apply` has put an operator on, which then runs
        with the edited queries and keys.
    modulations: their edits add up. Each acts on the rows of the batch made from its scene's
        prompt, unless its `where` says otherwise.

    Raises ValueError for phrases that are cut off, modulations that match no layer or conflict;
    NotImplementedError for what a model, or the operator underneath, cannot do. Nothing is changed
    then.
    """
    model, found_pipe = denoiser_of(pipe, "modulate")
    if found_pipe is None or not hasattr(found_pipe, "encode_prompt"):
        raise ValueError("modulate needs the pipeline: phrases are found through its tokenizers")
    parts = flatten(modulations)
    if not parts:
        raise ValueError("the list of modulations is empty")
    family = family_of(model)
    attentions = attention_layers(model)
    kinds = {name: family.kind(name, module) for name, module in attentions.items()}
    chosen = choose_layers(parts, kinds)
    check_conflicts(chosen, kinds, attentions)
    tracker = Tracker(model, family, found_pipe, None)
    prompts = Prompts(found_pipe, [text for one in parts for text in one.texts])
    is_joint = "joint" in kinds.values()
    moment = Moment(model, tracker, prompts, TextAxis(found_pipe, model), parts, is_joint)
    plans: dict = {}
    bound = [
        _Bound(attentions[name], ModulatedLayer(name, kinds[name], active, moment, plans))
        for name, active in chosen.items()
    ]
    return Run(model, moment, bound, parts)


class _Bound:
    """One attention module, and how its softmax call reaches our layer."""

    def __init__(self, module: nn.Module, layer: ModulatedLayer) -> None:
        self.module = module
        self.layer = layer
        self.before = processor_in(module)
        layer.probe = Probe(module, self.before)
        self._is_stock = not (isinstance(self.before, Redirected) and self.before.attend)
        if isinstance(self.before, AttnProcessor):
            raise ValueError(
                f"{layer.name} holds {self.before!r}, put there by set_attn_processor; "
                "use foveate.apply, which modulate works with"
            )
        if self._is_stock:
            self.ours = _redirected(layer, self.before)
            return
        self.ours, layer.inner = self.before, self.before.attend
        owner = getattr(layer.inner, "__self__", None)
        if not isinstance(owner, Layer):
            raise ValueError(
                f"{layer.name} is modulated already; call remove() on the earlier run, or give "
                "modulate one list of all"
            )
        check_operator(layer.name, layer.kind, layer.modulations, owner.processor)

    def install(self) -> None:
        if self._is_stock:
            replace_processor(self.module, self.before, self.ours)
        else:
            object.__setattr__(self.ours, "attend", self.layer.attend)

    def undo(self) -> None:
        """Back to what was there, with what was set on it meanwhile."""
        if not self._is_stock:
            # apply's own remove may have come first
            if self.ours.attend == self.layer.attend:
                object.__setattr__(self.ours, "attend", self.layer.inner)
            return
        self.ours.attend = None
        kept = {k: v for k, v in vars(self.ours).items() if k not in ("attend", "project")}
        vars(self.before).update(kept)
        replace_processor(self.module, self.ours, self.before)


def _redirected(layer: ModulatedLayer, stock: object) -> Redirected:
    try:
        return redirect(stock, layer.attend)
    except NotImplementedError as error:
        raise NotImplementedError(f"{layer.name}: {error}") from None


def _why_idle(modulation: Modulation, steps: Sequence[float]) -> str:
    return (
        f"{modulation.name} never acted: its window is {modulation.scope.steps}, and the run had "
        f"{len(steps)} step(s) from {min(steps):.2f} to {max(steps):.2f} of the schedule"
    )


class Run(Undoable):
    """What `modulate` did to one pipeline; leaving `with`, or `remove`, undoes it."""

    def __init__(
        self,
        model: nn.Module,
        moment: Moment,
        bound: Sequence[_Bound],
        modulations: Sequence[Modulation],
    ) -> None:
        self.modulations = tuple(modulations)
        self._moment = moment
        self._records = [b.layer.record for b in bound]
        self._bound = list(bound)
        moment.prompts.install()
        self._hook = model.register_forward_pre_hook(moment, with_kwargs=True, prepend=True)
        for b in bound:
            b.install()

    def explain(self) -> Explanation:
        """What each layer did in the last run of the pipeline, and at what cost."""
        rows = tuple(record.explain() for record in self._records)
        steps = self._moment.steps
        idle = [m for m in self.modulations if steps and not any(map(m.scope.is_now, steps))]
        return Explanation(rows, tuple(_why_idle(m, steps) for m in idle))

    def span_maps(
        self, *, size: tuple[int, int] | None = None, steps: tuple[float, float] = (0.0, 1.0)
    ) -> dict[str, torch.Tensor]:
        """How much each pixel attended to each phrase in the last run: name -> [rows, h, w].

        Means over heads, layers and the steps in the window, of the `SpanMaps(scene)` among the
        modulations. `size` (h, w) None is the largest grid read.
        """
        return self.map_store.maps(size, steps)

    def attention_masks(self) -> dict[str, torch.Tensor]:
        """Which pixels belong to which phrase: name -> bool [rows, h, w], usable as regions.

        Of the last step that the `AttentionMasks(scene)` among the modulations has read.
        """
        return self._store(MaskStore, "AttentionMasks").masks()

    def read_by(self, modulation: Modulation) -> object:
        """The store of one of the modulations, of those that learn or read."""
        return self._moment.stores[modulation]

    @property
    def map_store(self) -> MapStore:
        """What the one `SpanMaps` among the modulations has read in the last run."""
        return self._store(MapStore, "SpanMaps")

    def _store(self, kind: type, reader: str) -> Any:
        stores = [
            store
            for one, store in self._moment.stores.items()
            if isinstance(one, Reader) and isinstance(store, kind)
        ]
        if len(stores) != 1:
            raise ValueError(
                f"maps need one foveate.{reader}(scene) among the modulations, got {len(stores)}"
            )
        return stores[0]

    def remove(self) -> None:
        """Put everything back. Safe to call again."""
        for b in self._bound:
            b.undo()
        if self._bound:
            self._hook.remove()
            self._moment.prompts.remove()
        self._bound = []
