"""Where phrases stand in a prompt, as ranges of characters.

Phrases are named inline, `a [red circle]{a} left of a [blue square]{b}`, or looked up in the prompt
as they are written, `"circle#2"` being the second one. Case and the width of spaces do not matter.
"""

from __future__ import annotations

import difflib
import re

__all__ = ["Range", "find_phrase", "last_word", "read_markup"]

Range = tuple[int, int]

_MARK = re.compile(r"\[([^\[\]]+)\]\{([^{}]*)\}")
_OCCURRENCE = re.compile(r"(.+?)#(\d+)")


def read_markup(marked: str) -> tuple[str, dict[str, tuple[Range, ...]]]:
    """The prompt without its marks, and the ranges of every name; a name may mark several words."""
    prompt, end = "", 0
    named: dict[str, tuple[Range, ...]] = {}
    for mark in _MARK.finditer(marked):
        words, name = mark.groups()
        if not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"the name of a marked phrase must be letters, digits and _, got {mark.group()!r}"
            )
        if not words.strip():
            raise ValueError(f"a marked phrase must hold a word, got {mark.group()!r}")
        prompt += marked[end : mark.start()]
        named[name] = (*named.get(name, ()), (len(prompt), len(prompt) + len(words)))
        prompt, end = prompt + words, mark.end()
    return prompt + marked[end:], named


def find_phrase(prompt: str, phrase: str) -> Range:
    """Range of whole words; ValueError names the nearest words where the phrase is absent."""
    # a phrase that the prompt holds as it is written is no count
    numbered = None if _occurrences(prompt, phrase) else _OCCURRENCE.fullmatch(phrase)
    text, occurrence = (numbered[1], int(numbered[2])) if numbered else (phrase, 1)
    words = text.split()
    if not words or occurrence < 1:
        raise ValueError(f"a phrase must hold a word and count occurrences from 1, got {phrase!r}")
    found = _occurrences(prompt, text)
    if not found:
        near = _nearest(prompt, words)
        raise ValueError(f"the prompt {prompt!r} has no phrase {text!r}; nearest: {near}")
    if occurrence > len(found):
        raise ValueError(
            f"{phrase!r} asks for occurrence {occurrence}, but the prompt {prompt!r} has "
            f"{text!r} {len(found)} time(s)"
        )
    return found[occurrence - 1]


def _occurrences(prompt: str, phrase: str) -> list[Range]:
    words = phrase.split()
    if not words:
        return []
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]


def last_word(prompt: str, ranges: tuple[Range, ...]) -> Range:
    """Range of the last word of a phrase: in English its noun, where it has no complement."""
    start, end = ranges[-1]
    # without punctuation, unless there is nothing else
    words = [*re.finditer(r"\w(?:\S*\w)?", prompt[start:end])]
    words = words or [*re.finditer(r"\S+", prompt[start:end])]
    first, last = words[-1].span()
    return start + first, start + last


def _nearest(prompt: str, words: list[str]) -> str:
    known = re.findall(r"\w+", prompt)
    runs = [" ".join(known[i : i + len(words)]) for i in range(len(known) - len(words) + 1)]
    wanted = " ".join(words).casefold()
    near = difflib.get_close_matches(wanted, [run.casefold() for run in runs], n=2, cutoff=0.0)
    return ", ".join(map(repr, near)) or "the prompt is shorter"
