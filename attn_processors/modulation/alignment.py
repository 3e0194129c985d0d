"""Which tokens two prompts share, and which took the place of which.

As in prompt-to-prompt (arXiv:2208.01626), on tokens: equal runs by difflib, where the paper's code
aligns by dynamic programming. Padding is matched position by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher

import torch

from .text_axis import TextAxis

__all__ = ["Alignment", "align_prompts"]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Positions on a text axis of `length` tokens.

    kept: (source, edited) positions of the same token.
    swapped: (source, edited) runs of which one took the place of the other; either may be empty.
    """

    length: int
    kept: tuple[tuple[int, int], ...]
    swapped: tuple[tuple[range, range], ...]

    @property
    def is_replacement(self) -> bool:
        """Whether the edit swaps words and adds or leaves out none."""
        return all(len(one) and len(two) for one, two in self.swapped)

    def shared(self, like: torch.Tensor) -> torch.Tensor:
        """[source, edited], 1 where the tokens are the same."""
        matrix = like.new_zeros(self.length, self.length)
        for source, edited in self.kept:
            matrix[source, edited] = 1
        return matrix

    def replaced(self, like: torch.Tensor) -> torch.Tensor:
        """`shared`, with swapped runs one to one, or evenly where their lengths differ."""
        matrix = self.shared(like)
        for source, edited in self.swapped:
            if len(source) == len(edited):
                matrix[list(source), list(edited)] = 1
            else:
                matrix[source.start : source.stop, edited.start : edited.stop] = 1 / len(edited)
        return matrix


def align_prompts(axis: TextAxis, source: str, edited: str, length: int | None) -> Alignment:
    """The alignment of two prompts; ValueError for one that is cut off; length None is any."""
    ids = [axis.ids(prompt) for prompt in (source, edited)]
    length = max(map(len, ids)) if length is None else length
    for prompt, tokens in zip((source, edited), ids, strict=True):
        if len(tokens) > length:
            raise ValueError(
                f"{prompt!r} has {len(tokens)} tokens and would be truncated to {length}, so its "
                "tokens cannot be matched; shorten it"
            )
    kept, swapped = [], []
    for kind, *bounds in SequenceMatcher(None, *ids, autojunk=False).get_opcodes():
        one, two = range(*bounds[:2]), range(*bounds[2:])
        if kind == "equal":
            kept += zip(one, two, strict=True)
        else:
            swapped.append((one, two))
    first, second = map(len, ids)
    kept += [(min(max(i, first), length - 1), i) for i in range(second, length)]
    return Alignment(length, tuple(kept), tuple(swapped))
