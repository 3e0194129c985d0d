"""AttentionReplace, AttentionRefine, AttentionReweight: edit a picture by editing its prompt.

Prompt-to-prompt (arXiv:2208.01626). Source and edited prompt are drawn in one batch from the same
noise. With A the attention of the source row, A* that of the edited one, V* its values and L the
matrix that takes positions of the edited prompt to those of the source, no map is needed:

    replace     A L V*                                  words were swapped
    refine      A L V* + A* (V* of new tokens)          words were added; L matches the kept ones
    reweight    A* diag(c) V*                           not normalised again
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .alignment import align_prompts
from .base import Modulation
from .options import read_strengths
from .plan import Branch, Plan
from .scene import Scene
from .site import Site
from .text_axis import TextAxis

__all__ = ["AttentionRefine", "AttentionReplace", "AttentionReweight", "SelfAttentionReplace"]


class _FromSource(Modulation):
    """Takes queries and keys of the rows of a source prompt to the rows of an edited one.

    source: the prompt, or a scene of it. edited: the scene whose rows change. The pipeline is
    called with prompt=[source, edited], and with the same noise for both.
    """

    edits = frozenset({"queries", "keys"})

    def __init__(self, source: Scene | str, edited: Scene) -> None:
        super().__init__(edited)
        if not isinstance(source, (Scene, str)):
            raise ValueError(f"{self.name} needs a source prompt or a Scene of it, got {source!r}")
        self.source = source.prompt if isinstance(source, Scene) else source
        self.beside = (self.source,)
        if self.source == edited.prompt:
            raise ValueError(f"{self.name} needs two prompts, got {self.source!r} twice")


class AttentionReplace(_FromSource):
    """Cross-attention of the source, where words of the prompt were swapped for others.

    A swapped run of tokens hands on its attention token by token, or evenly where the numbers
    differ. A joint softmax weighs text and picture together, so the part of the text cannot be
    exchanged alone there: models that have only joint layers are refused.
    """

    kinds = frozenset({"cross"})

    def check(self, axis: TextAxis, length: int | None) -> None:
        found = align_prompts(axis, self.source, self.scene.prompt, length)
        if not found.is_replacement:
            raise ValueError(
                f"{self.scene.prompt!r} adds or leaves out words of {self.source!r}; "
                "AttentionRefine serves that"
            )

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan:
        source = site.beside(self.source)
        matrix = site.align(self.source, self.scene.prompt).replaced(v)
        return Plan(
            queries=source.q,
            keys=source.k,
            grouped=source.grouped_padding,
            value_map=lambda values: matrix.to(values) @ values,
        )


class AttentionRefine(_FromSource):
    """Cross-attention of the source for the words it has, the edited prompt's own for new ones.

    See `AttentionReplace` for joint layers.
    """

    kinds = frozenset({"cross"})

    def check(self, axis: TextAxis, length: int | None) -> None:
        align_prompts(axis, self.source, self.scene.prompt, length)

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan:
        source = site.beside(self.source)
        matrix = site.align(self.source, self.scene.prompt).shared(v)
        is_new = 1 - matrix.amax(0)
        one = v.new_ones(1, 1, 1, 1)
        shared = Plan(
            queries=source.q,
            keys=source.k,
            grouped=source.grouped_padding,
            value_map=lambda values: matrix.to(values) @ values,
        )
        new = Plan(value_map=lambda values: is_new.to(values)[:, None] * values)
        return Plan(branches=(Branch(one, shared), Branch(one, new)))


class SelfAttentionReplace(_FromSource):
    """Self-attention of the source: keeps its layout in early steps.

    max_tokens: larger grids are left as they are.
    """

    kinds = frozenset({"self"})

    def __init__(self, source: Scene | str, edited: Scene, *, max_tokens: int = 1024) -> None:
        super().__init__(source, edited)
        self.max_tokens = max_tokens

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        if q.shape[2] > self.max_tokens:
            return None
        source = site.beside(self.source)
        return Plan(queries=source.q, keys=source.k)


class AttentionReweight(Modulation):
    """Multiply the attention to phrases, without normalising it again.

    strengths: name or phrase of the scene -> factor; 1 changes nothing, 0 takes the phrase out, and
        a negative one pushes it away. `Emphasize` is the factor before the softmax instead.
    """

    edits = frozenset({"value scale"})
    is_static = True

    def __init__(self, scene: Scene, strengths: Mapping[str, float]) -> None:
        super().__init__(scene)
        self.strengths = read_strengths(scene, strengths)

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        if all(strength == 1 for strength in self.strengths.values()):
            return None
        scale = torch.ones(site.num_keys, dtype=site.dtype, device=site.device)
        for name, strength in self.strengths.items():
            scale[site.marked(site.tokens[self.scene].phrases[name])] *= strength
        return Plan(value_scale=scale)
