"""Which text tokens a phrase became: the axis of text keys, through the pipeline's own tokenizers.

Token offsets decide, never word counts, so subwords, repeated words and unusual spacing are exact.
A model with several text encoders lays them side by side in channels (SDXL), where a token is in
the phrase if it is for either, or one after the other (SD3), where a phrase has tokens in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from .phrases import Range
from .scene import Scene

__all__ = ["TextAxis"]

# by class of the denoiser: runs of text keys, each with the tokenizers that share it
_AXES: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "UNet2DConditionModel": (("tokenizer", "tokenizer_2"),),
        "FluxTransformer2DModel": (("tokenizer_2",),),
        "SD3Transformer2DModel": (("tokenizer", "tokenizer_2"), ("tokenizer_3",)),
    }
)
_TWO_FORWARDS = ("FluxTransformer2DModel",)


class TextAxis:
    """The text keys of one pipeline; `tokens` finds those of ranges of a prompt."""

    def __init__(self, pipe: object, model: nn.Module) -> None:
        names = next((_AXES[c.__name__] for c in type(model).__mro__ if c.__name__ in _AXES), None)
        if names is None:
            raise NotImplementedError(
                f"foveate does not know the text tokens of {type(model).__name__}. "
                f"Known: {', '.join(_AXES)}. A model is one row of _AXES, in text_axis.py."
            )
        found = [[getattr(pipe, name, None) for name in run] for run in names]
        self._pipe = pipe
        # whether negative prompts come as rows of one batch, or in a forward of their own
        self.negative_in_batch = type(model).__name__ not in _TWO_FORWARDS
        self.runs = [[tokenizer for tokenizer in run if tokenizer is not None] for run in found]
        for tokenizer in (t for run in self.runs for t in run):
            if not tokenizer.is_fast:
                raise NotImplementedError(
                    f"{type(tokenizer).__name__} gives no character offsets, so phrases cannot be "
                    "found in its tokens; load its fast form"
                )
        if not self.runs[0]:
            raise ValueError("the pipeline has no tokenizer, so phrases cannot be found in prompts")

    def tokens(
        self, scene: Scene, ranges: Sequence[Range], length: int | None = None
    ) -> tuple[int, ...]:
        """Positions on the text axis, which has `length` keys; None checks what is known already.

        Raises ValueError for what is cut off or has no token.
        """
        return self._positions(scene, ranges, length, is_all=False)

    def words(self, scene: Scene, length: int | None = None) -> tuple[int, ...]:
        """Positions of every token that stands for text, but for those cut off."""
        return self._positions(scene, [(0, len(scene.prompt))], length, is_all=True)

    def _positions(self, scene, ranges, length, is_all) -> tuple[int, ...]:
        start, found = 0, set()
        for run in self.runs:
            is_last = run is self.runs[-1]
            size = None if length is None else length - start
            if run and _is_clip(run[0]) and (size is None or not is_last):
                size = run[0].model_max_length
            for tokenizer in run:
                inside = self._of_run(scene, ranges, tokenizer, size, is_all)
                found |= {start + i for i in inside}
            start += 0 if size is None else size
        return tuple(sorted(found))

    def _of_run(self, scene, ranges, tokenizer, size, is_all) -> set[int]:
        text, ranges = self._converted(scene.prompt, ranges, tokenizer)
        offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        inside = {
            i
            for i, (s, e) in enumerate(offsets)
            if s < e and any(s < high and low < e for low, high in ranges)
        }
        words = " ".join(text[low:high] for low, high in ranges)
        if not inside:
            raise ValueError(f"{words!r} has no token of its own in {type(tokenizer).__name__}")
        if scene.chunked:
            return _in_chunks(inside, offsets, tokenizer)
        # the last token that is kept is the end of the text
        kept = inside if size is None or len(offsets) <= size else set(range(size - 1)) & inside
        if kept != inside and not is_all:
            raise ValueError(
                f"{words!r} is truncated away: {type(tokenizer).__name__} keeps {size - 1} tokens "
                f"of the {len(offsets) - 1} of {scene.prompt!r}; say it earlier, shorten the "
                "prompt, or raise max_sequence_length where the pipeline has it"
            )
        return kept

    def _converted(self, prompt, ranges, tokenizer):
        """The prompt as encoded: a word of textual inversion stands for several tokens."""
        convert = getattr(self._pipe, "maybe_convert_prompt", None)
        if convert is None:
            return prompt, list(ranges)
        edges = sorted({0, len(prompt), *(edge for one in ranges for edge in one)})
        place, text = {0: 0}, ""
        for low, high in zip(edges, edges[1:], strict=False):
            text += convert(prompt[low:high], tokenizer)
            place[high] = len(text)
        if text != convert(prompt, tokenizer):
            raise ValueError(f"a phrase of {prompt!r} begins or ends inside a word of an embedding")
        return text, [(place[low], place[high]) for low, high in ranges]


def _is_clip(tokenizer: object) -> bool:
    # the one kind that diffusers always pads to its own length
    return "CLIP" in type(tokenizer).__name__


def _in_chunks(inside, offsets, tokenizer) -> set[int]:
    """Positions where every chunk has a start and an end token of its own."""
    content = tokenizer.model_max_length - 2
    first = next(i for i, (s, e) in enumerate(offsets) if s < e)
    return {(i - first) // content * (content + 2) + 1 + (i - first) % content for i in inside}
