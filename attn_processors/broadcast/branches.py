"""Which of the forwards of one evaluation this is: the prompt's, the negative prompt's, a tile's.

A branch is known by what the model is conditioned on, compared by value, and by how often the same
conditioning came before in the same evaluation. Conditioning that was never seen is a new branch,
which has nothing to reuse; so switched prompts and guidance that ends midway are safe.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from .position import latent_of

__all__ = ["Branch", "Branches"]

_CONDITIONING = (
    "encoder_hidden_states",
    "encoder_hidden_states_2",
    "encoder_hidden_states_image",
    "encoder_attention_mask",
    "cap_feats",
    "class_labels",
    "pooled_projections",
    "added_cond_kwargs",
    "guidance",
    "motion_bucket_id",
)
_FORGET_AFTER = 8  # evaluations


class Branch(NamedTuple):
    """Key of what one forward may reuse.

    conditioning: number in the order of first appearance.
    occurrence: how many forwards of the evaluation had this conditioning before.
    latent: shape, dtype and device of the model's input.
    """

    conditioning: int
    occurrence: int
    latent: tuple


class _Known:
    """One conditioning: copies of its tensors, and the objects that were last found equal."""

    def __init__(self, number: int, tensors: tuple[torch.Tensor, ...]) -> None:
        self.number = number
        self.copies = tuple(tensor.detach().clone() for tensor in tensors)
        self.see(tensors)

    def see(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self.seen = tuple((weakref.ref(t), _version(t)) for t in tensors)

    def is_(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether these are the very objects that were last found equal, unchanged since."""
        return len(tensors) == len(self.seen) and all(
            ref() is t and version is not None and version == _version(t)
            for t, (ref, version) in zip(tensors, self.seen, strict=True)
        )

    def equals(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        return len(tensors) == len(self.copies) and all(
            a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
            for a, b in zip(tensors, self.copies, strict=True)
        )


class Branches:
    """Names the branch of every forward; `begin` starts a run."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._known: list[_Known] = []
        self._last_seen: dict[int, int] = {}
        self._number = 0
        self._evaluation = 0
        self._occurrences: Counter[int] = Counter()

    def name(self, arguments: Mapping[str, Any], *, is_new: bool) -> Branch:
        """The branch of the forward with these arguments; is_new begins an evaluation."""
        if is_new:
            self._evaluation += 1
            self._occurrences.clear()
            self._forget()
        tensors = tuple(_tensors(arguments))
        number = self._find(tensors)
        self._last_seen[number] = self._evaluation
        occurrence = self._occurrences[number]
        self._occurrences[number] += 1
        latent = latent_of(arguments)
        return Branch(number, occurrence, (tuple(latent.shape), latent.dtype, latent.device))

    def _find(self, tensors: tuple[torch.Tensor, ...]) -> int:
        known = next((k for k in self._known if k.is_(tensors)), None)
        if known is None:
            known = next((k for k in self._known if k.equals(tensors)), None)
            if known is None:
                known = _Known(self._number, tensors)
                self._known.append(known)
                self._number += 1
            known.see(tensors)
        return known.number

    def _forget(self) -> None:
        """Drop what was not seen for long: prompts that change in every step fill no memory."""
        oldest = self._evaluation - _FORGET_AFTER
        self._known = [k for k in self._known if self._last_seen[k.number] >= oldest]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.begin()


def _tensors(arguments: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    for name in _CONDITIONING:
        yield from _flatten(arguments.get(name))


def _flatten(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from _flatten(value[name])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _flatten(part)


def _version(tensor: torch.Tensor) -> int | None:
    # tensors made in inference mode do not count their changes: always compare them by value
    return None if tensor.is_inference() else tensor._version
