"""A modulation: what it edits, where, and its plan for one attention call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, ClassVar

import torch

from .plan import Plan
from .scene import Scene
from .scope import Scope
from .site import Site
from .text_axis import TextAxis

__all__ = ["Composed", "Modulation", "Reader", "compose", "flatten"]


class Modulation:
    """Base of the modulations; a subclass says what it edits and gives a plan for each call.

    kinds: the kinds of layers it acts in: "self", "cross", "joint", "temporal".
    edits: what its plans hold: "temperature" (one factor a query), "key scale" (factors by group of
        queries and key), "key bias" (the same for all queries, 0 on image keys), "text bias" (0 on
        image keys), "bias", "queries", "keys" (other tokens), "own keys" (other keys of the same
        tokens), "values", "value scale" (factors by token), "texts" (keys of further texts),
        "frame weights".
    is_static: whether its plan is a matter of the layout alone, and can be kept.
    texts: what it needs encoded beside the prompt.
    appends_text: whether these texts follow the prompt's tokens where layers are joint.
    beside: prompts whose rows it needs in the same batch.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"cross", "joint"})
    edits: ClassVar[frozenset[str]] = frozenset()
    is_static: ClassVar[bool] = False
    appends_text: ClassVar[bool] = False
    texts: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def __init__(self, scene: Scene | EllipsisType = ..., *, branch: str = "cond") -> None:
        """`scene` is left out where the modulation steers by none."""
        if scene is not ... and not isinstance(scene, Scene):
            raise ValueError(f"{self.name} needs a foveate.Scene, got {scene!r}")
        self.scene = None if scene is ... else scene
        self.scope = Scope(branch=branch)

    @property
    def name(self) -> str:
        return type(self).__name__

    def edits_in(self, kind: str) -> frozenset[str]:
        """What its plans hold in layers of this kind."""
        return self.edits

    def targets(self, kinds: Mapping[str, str]) -> list[str]:
        """The layers it can act in, of a model's layers and their kinds."""
        return [name for name, kind in kinds.items() if kind in self.kinds]

    def check(self, axis: TextAxis, length: int | None) -> None:
        """Raise ValueError for text it cannot serve; length None is before the pipeline runs."""

    def new_store(self) -> Any:
        """An empty store for what it learns in one run, or None where it learns nothing.

        It has `clear`, called when a run begins, and is `site.stores[self]` in `plan`.
        """
        return None

    def where(
        self,
        *,
        layers: str | Sequence[str] | None = None,
        stride: int | None = None,
        steps: tuple[float, float] | None = None,
        heads: Sequence[int] | None = None,
        branch: str | None = None,
    ) -> Modulation:
        """The same modulation in part of the model, the schedule, the heads or the batch.

        layers: pattern or patterns of layer names.
        stride: every n-th of the layers that match.
        steps: window (start, end) in fractions of the schedule, 0 the noisiest.
        heads: their indices.
        branch: "cond", the rows made from the scene's prompt; "uncond", the others; or "both".
        """
        new = copy.copy(self)
        new.scope = self.scope.narrowed(
            layers=layers, stride=stride, steps=steps, heads=heads, branch=branch
        )
        return new

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        """What to edit in the call of q [b, H, N, D] and k, v [b, H, M, D]; None for nothing."""
        raise NotImplementedError(f"{self.name} does not define plan")

    def __repr__(self) -> str:
        return self.name


class Reader(Modulation):
    """A modulation that edits nothing and looks at the attention the others made."""

    def new_store(self) -> Any:
        """An empty store for what one run reads; see `Modulation.new_store`."""
        raise NotImplementedError(f"{self.name} does not define new_store")

    def read(self, site: Site, mass: Callable[[torch.Tensor], torch.Tensor], store: Any) -> None:
        """Look at one call: `mass` gives the attention to columns [M, C] as [b, H, N, C].

        Columns may differ by row, [b, M, C]. What further texts get is not counted.
        """
        raise NotImplementedError(f"{self.name} does not define read")


class Composed:
    """Several modulations under one name; `where` speaks to each."""

    def __init__(self, parts: Sequence[Modulation]) -> None:
        self.parts = tuple(parts)

    def where(
        self,
        *,
        layers: str | Sequence[str] | None = None,
        stride: int | None = None,
        steps: tuple[float, float] | None = None,
        heads: Sequence[int] | None = None,
        branch: str | None = None,
    ) -> Composed:
        """See `Modulation.where`."""
        return Composed(
            [
                part.where(layers=layers, stride=stride, steps=steps, heads=heads, branch=branch)
                for part in self.parts
            ]
        )

    def __repr__(self) -> str:
        return f"compose({', '.join(map(repr, self.parts))})"


def compose(*modulations: Modulation | Composed) -> Composed:
    """All of them as one: edits of the logits add up, value maps apply in the order given."""
    return Composed(flatten(modulations))


def flatten(modulations: Sequence[Modulation | Composed]) -> list[Modulation]:
    """The modulations in a list that may hold composed ones; ValueError for anything else."""
    flat = []
    for one in modulations:
        if not isinstance(one, (Modulation, Composed)):
            raise ValueError(f"expected a modulation such as foveate.RegionBind, got {one!r}")
        flat += one.parts if isinstance(one, Composed) else [one]
    return flat
