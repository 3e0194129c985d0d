"""Where phrases of a prompt lie among the tokens of its conditioning, by ComfyUI's tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

__all__ = ["Tokenize", "find_phrases"]

# clip.tokenize: {encoder: chunks of (token, weight, word)}; word 0 is no word
Tokenize = Callable[..., Mapping[str, Sequence[Sequence[tuple]]]]

# which encoders' tokens make up the conditioning, one behind the other
_SEQUENCES = {
    frozenset({"l"}): ("l",),
    frozenset({"h"}): ("h",),
    frozenset({"g"}): ("g",),
    frozenset({"l", "g"}): ("l",),  # SDXL: side by side, token by token
    frozenset({"l", "g", "t5xxl"}): ("l", "t5xxl"),  # SD3
    frozenset({"l", "t5xxl"}): ("t5xxl",),  # Flux
    frozenset({"t5xxl"}): ("t5xxl",),  # Chroma
    frozenset({"umt5xxl"}): ("umt5xxl",),  # Wan
}


def find_phrases(
    tokenize: Tokenize, text: str, phrases: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """{phrase: places of its tokens in the conditioning of `text`}, and tokens of that in all.

    Every occurrence counts. Raises ValueError for a phrase that the text does not have, and for
    text encoders whose conditioning is not their tokens one by one.
    """
    encoders = _sequence(tokenize(text, return_word_ids=True))
    found: dict[str, list[int]] = {phrase: [] for phrase in phrases}
    start = 0
    for name, chunks in encoders:
        tokens = [token for chunk in chunks for token in chunk]
        words = [(place, token) for place, (token, _, word) in enumerate(tokens) if word]
        for phrase in phrases:
            own = dict(_sequence(tokenize(phrase, return_word_ids=True)))[name]
            wanted = [token for chunk in own for token, _, word in chunk if word]
            found[phrase] += [start + place for place in _occurrences(words, wanted)]
        start += len(tokens)
    missing = [phrase for phrase, places in found.items() if not places]
    if missing:
        raise ValueError(
            f"the text does not have {', '.join(map(repr, missing))}, written so and as whole "
            f"words; the text is {text!r}"
        )
    return {phrase: tuple(places) for phrase, places in found.items()}, start


def _sequence(tokens: Mapping[str, Sequence]) -> list[tuple[str, Sequence]]:
    names = _SEQUENCES.get(frozenset(tokens))
    if names is None:
        known = "; ".join(sorted(" + ".join(sorted(key)) for key in _SEQUENCES))
        raise ValueError(
            f"text encoders {' + '.join(sorted(tokens))}: where their tokens lie in the "
            f"conditioning is not known here; known are {known}"
        )
    return [(name, tokens[name]) for name in names]


def _occurrences(words: Sequence[tuple[int, object]], wanted: Sequence[object]) -> list[int]:
    """Places of the tokens of every run of `wanted` in `words`, which are (place, token)."""
    # tokens of textual inversions are tensors, which are no words of a phrase
    tokens = [token if isinstance(token, int) else None for _, token in words]
    starts = [
        i for i in range(len(tokens)) if wanted and tokens[i : i + len(wanted)] == list(wanted)
    ]
    return [words[i + j][0] for i in starts for j in range(len(wanted))]
