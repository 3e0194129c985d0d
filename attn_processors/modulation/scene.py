"""A prompt, the phrases in it that matter, and where in the picture they belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...kernels.coverage import Region
from .phrases import Range, find_phrase, last_word, read_markup
from .regions import read_region

__all__ = ["Scene"]


class Scene:
    """What modulations steer by; `prompt` is what the pipeline is called with.

    prompt: text with marked phrases, `a [red circle]{a} left of a [blue square]{b}`, or plain text.
    regions: name or phrase -> box (x0, y0, x1, y1) in fractions of width and height, or a mask of
        any size, in 0..1. A key that is no name is looked up as a phrase: "red circle", "circle#2".
    phrases: further phrases that have no region.
    parser: gives the phrases of a text, as a parser of noun phrases does; they are added.
    nouns: name or phrase -> the word in it that is the object; the last one where none is given.
    chunked: the prompt is encoded in chunks of as many tokens as the encoder takes, and passed as
        `prompt_embeds`, as tools for long prompts do.

    Raises ValueError for a phrase the prompt does not have, and for a region that is none.
    """

    def __init__(
        self,
        prompt: str,
        *,
        regions: Mapping[str, object] | None = None,
        phrases: Sequence[str] = (),
        parser: Callable[[str], Sequence[str]] | None = None,
        nouns: Mapping[str, str] | None = None,
        chunked: bool = False,
    ) -> None:
        self.prompt, named = read_markup(prompt)
        self.chunked = chunked
        self.phrases: dict[str, tuple[Range, ...]] = dict(named)
        parsed = () if parser is None else parser(self.prompt)
        for name in (*(regions or {}), *phrases, *parsed):
            if name not in self.phrases:
                self.phrases[name] = (find_phrase(self.prompt, name),)
        if not self.phrases:
            raise ValueError(
                "a Scene needs a phrase: mark one, 'a [red circle]{a}', or name it in regions or "
                f"phrases; got {prompt!r}"
            )
        self.regions: dict[str, Region] = {
            name: read_region(name, region) for name, region in (regions or {}).items()
        }
        self.nouns = {name: self._noun(name, nouns or {}) for name in self.phrases}
        for name in nouns or {}:
            self.check_name(name)

    def _noun(self, name: str, nouns: Mapping[str, str]) -> Range:
        ranges = self.phrases[name]
        if name not in nouns:
            return last_word(self.prompt, ranges)
        for start, end in ranges:
            if nouns[name].casefold() in self.prompt[start:end].casefold():
                low, high = find_phrase(self.prompt[start:end], nouns[name])
                return start + low, start + high
        raise ValueError(f"the noun {nouns[name]!r} is not in the phrase {self.text(name)!r}")

    def text(self, name: str) -> str:
        """The words of a phrase."""
        return " ".join(self.prompt[start:end] for start, end in self.phrases[name])

    def check_name(self, name: str) -> None:
        """Raise ValueError unless `name` is a phrase of this scene."""
        if name not in self.phrases:
            raise ValueError(f"{name!r} is no phrase of this scene; it has {list(self.phrases)}")

    def __repr__(self) -> str:
        return f"Scene({self.prompt!r}, {', '.join(map(repr, self.phrases))})"
