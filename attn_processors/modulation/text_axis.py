"""Which text tokens a phrase became: the axis of text keys, through the pipeline's own tokenizers.

Token offsets decide, never word counts, so subwords, repeated words and unusual spacing are exact.
A model with several text encoders lays them side by side in channels (SDXL), where a token is in
the phrase if it is for either, or one after the other (SD3), where a phrase has tokens in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from .phrases import Range

__all__ = ["TextAxis"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """How a class of denoisers is given its text.

    runs: of text keys, each with the tokenizers that share it.
    negative_in_batch: negative prompts are rows of the same batch, not a forward of their own.
    projection: the part of the model between the encoder's output and what its layers see.
    """

    runs: tuple[tuple[str, ...], ...]
    negative_in_batch: bool = True
    projection: str | None = None


_AXES: Mapping[str, _Row] = MappingProxyType(
    {
        "UNet2DConditionModel": _Row(runs=(("tokenizer", "tokenizer_2"),)),
        "UNetMotionModel": _Row(runs=(("tokenizer",),)),
        "FluxTransformer2DModel": _Row(runs=(("tokenizer_2",),), negative_in_batch=False),
        "SD3Transformer2DModel": _Row(runs=(("tokenizer", "tokenizer_2"), ("tokenizer_3",))),
        "PixArtTransformer2DModel": _Row(runs=(("tokenizer",),), projection="caption_projection"),
    }
)


class TextAxis:
    """The text keys of one pipeline; `tokens` finds those of ranges of a prompt."""

    def __init__(self, pipe: object, model: nn.Module) -> None:
        row = next((_AXES[c.__name__] for c in type(model).__mro__ if c.__name__ in _AXES), None)
        if row is None:
            raise NotImplementedError(
                f"foveate does not know the text tokens of {type(model).__name__}. "
                f"Known: {', '.join(_AXES)}. A model is one row of _AXES, in text_axis.py."
            )
        found = [[getattr(pipe, name, None) for name in run] for run in row.runs]
        self._pipe = pipe
        self.row = row
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
        self,
        prompt: str,
        ranges: Sequence[Range],
        length: int | None = None,
        chunked: bool = False,
    ) -> tuple[int, ...]:
        """Positions on the text axis, which has `length` keys; None checks what is known already.

        chunked: see `Scene`. Raises ValueError for what is cut off or has no token.
        """
        return self._positions(prompt, ranges, length, chunked, is_all=False)

    def words(
        self, prompt: str, length: int | None = None, chunked: bool = False
    ) -> tuple[int, ...]:
        """Positions of every token that stands for text, but for those cut off."""
        return self._positions(prompt, [(0, len(prompt))], length, chunked, is_all=True)

    def ids(self, prompt: str) -> list[int]:
        """The prompt's tokens with their ends, on an axis of one run."""
        tokenizer = self.runs[0][0]
        text, _ = self._converted(prompt, [], tokenizer)
        return tokenizer(text, verbose=False)["input_ids"]

    def check_call(self, prompt: str, arguments: Mapping[str, object]) -> None:
        """Raise ValueError where the call of `encode_prompt` rewrites the prompt."""
        prepare = getattr(self._pipe, "_text_preprocessing", None)
        if prepare is None or not arguments.get("clean_caption"):
            return
        cleaned = prepare(prompt, clean_caption=True)[0]
        if cleaned != prepare(prompt)[0]:
            raise ValueError(
                f"clean_caption makes {cleaned!r} of {prompt!r}, where phrases lie elsewhere; "
                "call the pipeline with clean_caption=False"
            )

    def _positions(self, prompt, ranges, length, chunked, is_all) -> tuple[int, ...]:
        start, found = 0, set()
        for run in self.runs:
            is_last = run is self.runs[-1]
            size = None if length is None else length - start
            if run and _is_clip(run[0]) and (size is None or not is_last):
                size = run[0].model_max_length
            for tokenizer in run:
                inside = self._of_run(prompt, ranges, tokenizer, size, chunked, is_all)
                found |= {start + i for i in inside}
            start += 0 if size is None else size
        return tuple(sorted(found))

    def _of_run(self, prompt, ranges, tokenizer, size, chunked, is_all) -> set[int]:
        text, ranges = self._converted(prompt, ranges, tokenizer)
        offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        inside = {
            i
            for i, (s, e) in enumerate(offsets)
            if s < e and any(s < high and low < e for low, high in ranges)
        }
        words = " ".join(text[low:high] for low, high in ranges)
        if not inside:
            raise ValueError(f"{words!r} has no token of its own in {type(tokenizer).__name__}")
        if chunked:
            return _in_chunks(inside, offsets, tokenizer)
        # the last token that is kept is the end of the text
        kept = inside if size is None or len(offsets) <= size else set(range(size - 1)) & inside
        if kept != inside and not is_all:
            raise ValueError(
                f"{words!r} is truncated away: {type(tokenizer).__name__} keeps {size - 1} tokens "
                f"of the {len(offsets) - 1} of {prompt!r}; say it earlier, shorten the "
                "prompt, or raise max_sequence_length where the pipeline has it"
            )
        return kept

    def _converted(self, prompt, ranges, tokenizer):
        """The prompt as encoded: a word of textual inversion stands for several tokens."""
        if hasattr(self._pipe, "_text_preprocessing"):
            return _stripped(prompt, ranges)
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


def _stripped(prompt, ranges):
    """As pipelines with a caption filter encode it where the filter is off."""
    text = prompt.strip().lower()
    before = len(prompt) - len(prompt.lstrip())
    if len(text) != len(prompt.strip()):
        raise ValueError(f"{prompt!r} changes its length in lower case; write it in lower case")
    return text, [(max(0, low - before), high - before) for low, high in ranges]


def _is_clip(tokenizer: object) -> bool:
    # the one kind that diffusers always pads to its own length
    return "CLIP" in type(tokenizer).__name__


def _in_chunks(inside, offsets, tokenizer) -> set[int]:
    """Positions where every chunk has a start and an end token of its own."""
    content = tokenizer.model_max_length - 2
    first = next(i for i, (s, e) in enumerate(offsets) if s < e)
    return {(i - first) // content * (content + 2) + 1 + (i - first) % content for i in inside}
