"""What the layers must know of the present forward: step, rows, text tokens, layouts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..tracker import Tracker
from .base import Modulation, Reader
from .prompts import Origin, Prompts
from .scene import Scene
from .site import SceneTokens
from .text_axis import TextAxis

__all__ = ["Moment"]


class Moment:
    """Forward pre-hook of the denoiser; raises before a step that cannot do what is asked.

    progress: place in the schedule, 0 the noisiest.
    origins: where each row of the batch comes from.
    runs: how many runs of the pipeline have begun.
    stores: what each reader has read in this run.
    """

    def __init__(
        self,
        model: nn.Module,
        tracker: Tracker,
        prompts: Prompts,
        axis: TextAxis,
        modulations: Sequence[Modulation],
    ) -> None:
        self.tracker = tracker
        self.prompts = prompts
        self.axis = axis
        self.scenes = tuple(dict.fromkeys(m.scene for m in modulations if m.scene is not None))
        self.stores = {m: m.new_store() for m in modulations if isinstance(m, Reader)}
        for one in modulations:
            self._check_branch(one)
        find_tokens(axis, self.scenes, None)
        self.progress = 0.0
        self.origins: tuple[Origin, ...] = ()
        self.text_length = 0
        self.runs = 0
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._schedule: torch.Tensor | None = None
        self._tokens: dict[int, dict[Scene, SceneTokens]] = {}

    def __call__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.tracker(model, args, kwargs)
        self.progress = self.tracker.progress()
        text = {**dict(zip(self._names, args, strict=False)), **kwargs}["encoder_hidden_states"]
        self.origins = self.prompts.origins(text)
        self.text_length = text.shape[1]
        if self.tracker.schedule is not self._schedule:
            self._schedule = self.tracker.schedule
            self.runs += 1
            for store in self.stores.values():
                store.clear()
            self._check_prompts()
        if self.text_length not in self._tokens:
            self._tokens[self.text_length] = find_tokens(self.axis, self.scenes, self.text_length)

    @property
    def tokens(self) -> dict[Scene, SceneTokens]:
        """Where the phrases of every scene lie on the text axis of this forward."""
        return self._tokens[self.text_length]

    def rows_of(self, modulation: Modulation) -> list[bool]:
        """For each row of the batch, whether the modulation acts on it."""
        branch = modulation.scope.branch
        if branch == "both":
            return [True] * len(self.origins)
        scenes = self.scenes if modulation.scene is None else (modulation.scene,)
        prompts = {None, *(scene.prompt for scene in scenes)}
        is_cond = [
            origin.kind == "prompt" and (not scenes or origin.prompt in prompts)
            for origin in self.origins
        ]
        return is_cond if branch == "cond" else [not one for one in is_cond]

    def _check_branch(self, modulation: Modulation) -> None:
        by_text = modulation.scope.branch == "both" or modulation.scene is not None or self.scenes
        if not by_text and not self.axis.negative_in_batch:
            raise ValueError(
                f"{modulation.name}: this pipeline makes the negative prompt's pass like any other,"
                f" so branch={modulation.scope.branch!r} needs a Scene among the modulations to "
                "tell them apart; branch='both' does not"
            )

    def _check_prompts(self) -> None:
        if all(origin.kind == "unknown" for origin in self.origins):
            raise ValueError(
                "the text embeddings of this forward are none that pipe.encode_prompt returned, so "
                "the rows of the prompt are not known; call the pipeline inside of modulate"
            )
        encoded = self.prompts.encoded
        for scene in self.scenes:
            is_given = None in encoded and len({one.prompt for one in self.scenes}) == 1
            if scene.prompt not in encoded and not is_given:
                got = ", ".join(map(repr, sorted(map(str, encoded))))
                raise ValueError(
                    f"this run encodes {got}, not the prompt of {scene!r}; "
                    "call the pipeline with prompt=scene.prompt"
                )


def find_tokens(
    axis: TextAxis, scenes: Sequence[Scene], length: int | None
) -> dict[Scene, SceneTokens]:
    """The tokens of every scene on an axis of `length` keys; None checks what is known without."""
    found = {}
    for scene in scenes:
        phrases = {name: axis.tokens(scene, r, length) for name, r in scene.phrases.items()}
        nouns = {name: axis.tokens(scene, [r], length) for name, r in scene.nouns.items()}
        found[scene] = SceneTokens(phrases, nouns, axis.words(scene, length))
    return found
