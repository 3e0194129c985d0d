"""StructuredText: phrases bring their own encoding, so attributes do not bleed between them.

Structured diffusion guidance (arXiv:2212.05032). A text encoder mixes all words of a prompt; a
phrase encoded alone knows its own attributes only. With V_0 the values of the prompt, V_i those
with the tokens of phrase i taken from the phrase alone, and n phrases:

    O = softmax(q K_0) 1/(n+1) sum_i V_i                            one call on the mean
    O = 1/(n+1) sum_i softmax(q K_i) V       for conjunctions       V with all phrases taken alone

K_i and V_i differ from the prompt's in the phrase's tokens, so only these are projected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import Modulation
from .plan import Branch, Plan
from .scene import Scene
from .site import Site
from .text_axis import TextAxis

__all__ = ["StructuredText"]


class StructuredText(Modulation):
    """Give every phrase of the scene, in cross-attention, the values of itself encoded alone.

    conjunction: for prompts whose parts are joined by "and": the keys of the phrases as well, one
        softmax each. n + 1 attention calls in the place of one.

    In a joint layer a text changes with the picture from layer to layer, so a phrase has no values
    of its own there: models that have only joint layers are refused.
    """

    kinds = frozenset({"cross"})

    def __init__(self, scene: Scene, *, conjunction: bool = False) -> None:
        super().__init__(scene)
        if scene.chunked:
            raise ValueError(
                "StructuredText encodes phrases as the pipeline encodes prompts, which chunked "
                "prompts are not; use a prompt that fits the encoder"
            )
        self.conjunction = conjunction
        self.texts = tuple(scene.text(name) for name in scene.phrases)

    def edits_in(self, kind: str) -> frozenset[str]:
        return frozenset({"values", "own keys"} if self.conjunction else {"values"})

    def check(self, axis: TextAxis, length: int | None) -> None:
        prompt = self.scene.prompt
        for name, ranges in self.scene.phrases.items():
            text = self.scene.text(name)
            pairs = _matched(axis.tokens(prompt, ranges, length), axis.words(text, length))
            found = [
                [axis.ids(one)[i] for i in p] for one, p in zip((prompt, text), pairs, strict=True)
            ]
            if found[0] != found[1]:
                raise ValueError(
                    f"{text!r} becomes other tokens in {prompt!r} than alone, so they cannot be "
                    "matched; mark whole words, in one piece"
                )

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan:
        texts = [site.texts(text) for text in self.texts]
        keys, values = site.project(torch.stack([text.embedding for text in texts]))
        phrases = site.tokens[self.scene].phrases.values()
        places = [_matched(one, text.words) for one, text in zip(phrases, texts, strict=True)]
        share = 1 / (len(texts) + 1)
        if not self.conjunction:
            mean = v.clone()
            for i, (here, there) in enumerate(places):
                mean[:, :, here] += share * (values[i, :, there] - v[:, :, here])
            return Plan(values=mean)
        every, weight = v.clone(), v.new_full((1, 1, 1, 1), share)
        branches = [Branch(weight, Plan())]
        for i, (here, there) in enumerate(places):
            every[:, :, here] = values[i, :, there]
            own = k.clone()
            own[:, :, here] = keys[i, :, there]
            branches.append(Branch(weight, Plan(keys=own, grouped=site.padding)))
        return Plan(values=every, branches=tuple(branches))


def _matched(inside: Sequence[int], alone: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions of a phrase in the prompt and alone.

    The mark of a space before it may be a token of its own, with one of them: it is left out.
    """
    number = min(len(inside), len(alone))
    return list(inside[-number:]), list(alone[-number:])
