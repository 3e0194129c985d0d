"""What the layers must know of the present forward: step, rows, text tokens, layouts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import nn

from ..tracker import Tracker
from .alignment import Alignment, align_prompts
from .base import Modulation
from .prompts import Origin, Prompts
from .scene import Scene
from .site import SceneTokens, Text
from .text_axis import TextAxis

__all__ = ["Moment"]


class Moment:
    """Forward pre-hook of the denoiser; raises before a step that cannot do what is asked.

    progress: place in the schedule, 0 the noisiest.
    origins: where each row of the batch comes from.
    text_length: how many tokens the prompt has; those of further texts may follow.
    padding: [B, T], True at text tokens the model hides; None where it hides none.
    runs: how many runs of the pipeline have begun. steps: the places of this run, in order.
    stores: what modulations have learnt in this run, of those that learn.
    kept: what layers leave for those behind them, within one forward.
    """

    def __init__(
        self,
        model: nn.Module,
        tracker: Tracker,
        prompts: Prompts,
        axis: TextAxis,
        modulations: Sequence[Modulation],
        is_joint: bool,
    ) -> None:
        self.tracker = tracker
        self.modulations = tuple(modulations)
        self.prompts = prompts
        self.axis = axis
        self.scenes = tuple(dict.fromkeys(m.scene for m in modulations if m.scene is not None))
        stores = {m: m.new_store() for m in modulations}
        self.stores = {m: store for m, store in stores.items() if store is not None}
        for one in modulations:
            self._check_branch(one)
            one.check(axis, None)
        find_tokens(axis, self.scenes, None)
        self._appending = [one for one in modulations if one.appends_text and is_joint]
        for one in self._appending:
            self._check_appending(one)
        projection = axis.row.projection
        self._projection = None if projection is None else getattr(model, projection)
        self.progress = 0.0
        self.origins: tuple[Origin, ...] = ()
        self.text_length = 0
        self.padding: torch.Tensor | None = None
        self.kept: dict[Hashable, Any] = {}
        self.runs = 0
        self.steps: list[float] = []
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._schedule: torch.Tensor | None = None
        self._tokens: dict[int, dict[Scene, SceneTokens]] = {}
        self._texts: dict[str, Text] = {}
        self._alignments: dict[tuple[str, str, int], Alignment] = {}

    def __call__(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        self.tracker(model, args, kwargs)
        if self.tracker.exchange is not None:
            raise NotImplementedError(
                "modulate does not run under context parallelism: no rank sees all of the text; "
                "leave the `with` block, or remove() it"
            )
        self.progress = self.tracker.progress()
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        text, mask = arguments["encoder_hidden_states"], arguments.get("encoder_attention_mask")
        self.origins = self.prompts.origins(text)
        self.text_length = text.shape[1]
        self.padding = None if mask is None else ~mask.bool()
        self.kept = {}
        self._begin(text)
        if self.progress not in self.steps:
            self.steps.append(self.progress)
        appended = self._appended()
        if not appended:
            return None
        arguments = self._longer(arguments, appended)
        self.tracker(model, (), arguments)
        return (), arguments

    def _begin(self, text: torch.Tensor) -> None:
        """What changes with a run, or with the length of the text."""
        if self.tracker.schedule is not self._schedule:
            self._schedule = self.tracker.schedule
            self.runs += 1
            self.steps = []
            for store in self.stores.values():
                store.clear()
            self._check_prompts()
            self._texts = {}
            self._like = text
        if self.text_length not in self._tokens:
            for one in self.modulations:
                one.check(self.axis, self.text_length)
            self._tokens[self.text_length] = find_tokens(self.axis, self.scenes, self.text_length)

    def text(self, name: str) -> Text:
        """One of the texts that modulations asked for, as the layers see it."""
        if name not in self._texts:
            embedding, valid = self.prompts.encodings[name]
            # here and not before the forward, when an offloaded model may lie elsewhere
            embedding = embedding.to(self._like)
            if self._projection is not None:
                embedding = self._projection(embedding[None])[0]
            words = self.axis.words(name, self.text_length)
            self._texts[name] = Text(embedding, words, None if valid is None else ~valid)
        return self._texts[name]

    def align(self, source: str, edited: str) -> Alignment:
        """Which tokens two prompts share."""
        key = (source, edited, self.text_length)
        if key not in self._alignments:
            self._alignments[key] = align_prompts(self.axis, *key)
        return self._alignments[key]

    def _appended(self) -> list[torch.Tensor]:
        """Embeddings [T, C] that follow the prompt's in this forward."""
        found = []
        for one in self._appending:
            rows = self.rows_of(one)
            if not (one.scope.is_now(self.progress) and any(rows)):
                continue
            if not all(rows):
                raise ValueError(
                    f"{one.name} makes the text of a joint layer longer, for all rows of a batch; "
                    "draw one prompt at a time"
                )
            found += [self.text(name).embedding for name in one.texts]
        return found

    def _longer(self, arguments: dict[str, Any], appended: list[torch.Tensor]) -> dict[str, Any]:
        text = arguments["encoder_hidden_states"]
        further = torch.cat(appended).to(text).expand(len(text), -1, -1)
        ids = arguments["txt_ids"]
        return {
            **arguments,
            "encoder_hidden_states": torch.cat([text, further], 1),
            "txt_ids": torch.cat([ids] * (1 + len(appended)), -2),
        }

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
        if not by_text and not self.axis.row.negative_in_batch:
            raise ValueError(
                f"{modulation.name}: this pipeline makes the negative prompt's pass like any other,"
                f" so branch={modulation.scope.branch!r} needs a Scene among the modulations to "
                "tell them apart; branch='both' does not"
            )

    def _check_appending(self, modulation: Modulation) -> None:
        if self.axis.row.negative_in_batch:
            raise NotImplementedError(
                f"{modulation.name}: in this model the rows of the prompt and of the negative "
                "prompt share the text axis of joint layers, so no text can be added to one alone"
            )
        scope = modulation.scope
        if scope.layers is not None or scope.stride > 1 or scope.heads is not None:
            raise ValueError(
                f"{modulation.name} adds text to every joint layer, so it must act in all layers "
                "and heads; narrow it by steps= alone"
            )

    def _check_prompts(self) -> None:
        if all(origin.kind == "unknown" for origin in self.origins):
            raise ValueError(
                "the text embeddings of this forward are none that pipe.encode_prompt returned, so "
                "the rows of the prompt are not known; call the pipeline inside of modulate"
            )
        # the rows of this forward alone: a call that failed may have encoded others. Where the
        # negative prompt has a forward of its own, it is the second
        encoded = {origin.prompt for origin in self.origins if origin.kind == "prompt"}
        for scene in self.scenes:
            is_given = None in encoded and len({one.prompt for one in self.scenes}) == 1
            if scene.prompt not in encoded and not is_given:
                got = ", ".join(map(repr, sorted(map(str, encoded)))) or "no prompt"
                raise ValueError(
                    f"this run encodes {got}, not the prompt of {scene!r}; "
                    "call the pipeline with prompt=scene.prompt"
                )
            self.axis.check_call(scene.prompt, self.prompts.arguments)
        for text, (embedding, _) in self.prompts.encodings.items():
            if len(embedding) != self.text_length:
                raise ValueError(
                    f"{text!r} was encoded to {len(embedding)} tokens, the prompt to "
                    f"{self.text_length}; pass the prompt as text, not as embeddings"
                )
        for one in self.modulations:
            for prompt in one.beside:
                self._check_beside(one, prompt)

    def _check_beside(self, modulation: Modulation, prompt: str) -> None:
        if modulation.scope.branch != "cond":
            raise ValueError(
                f"{modulation.name} pairs rows of two prompts, so it acts on the rows of its own "
                f"alone: leave branch={modulation.scope.branch!r} out"
            )
        counts = [
            sum(origin.prompt == one for origin in self.origins)
            for one in (prompt, modulation.scene.prompt)
        ]
        if counts[0] != counts[1]:
            raise ValueError(
                f"{modulation.name} needs a row of {prompt!r} for every row of "
                f"{modulation.scene.prompt!r} in one batch, got {counts[0]} and {counts[1]}; call "
                "the pipeline with prompt=[source, edited]"
            )


def find_tokens(
    axis: TextAxis, scenes: Sequence[Scene], length: int | None
) -> dict[Scene, SceneTokens]:
    """The tokens of every scene on an axis of `length` keys; None checks what is known without."""
    found = {}
    for scene in scenes:
        ask = functools.partial(axis.tokens, scene.prompt, length=length, chunked=scene.chunked)
        phrases = {name: ask(ranges) for name, ranges in scene.phrases.items()}
        nouns = {name: ask([one]) for name, one in scene.nouns.items()}
        words = axis.words(scene.prompt, length, scene.chunked)
        found[scene] = SceneTokens(phrases, nouns, words)
    return found
