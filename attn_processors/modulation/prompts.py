"""Which prompt each row of a batch was made from: modulations touch the rows of their own prompt.

Batches hold conditional and unconditional halves in either order, several prompts, or come as two
forwards. Nothing of that is guessed: the pipeline's `encode_prompt` is observed, and the rows of
the text embeddings that the model is given are compared with what it returned.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Origin", "Prompts"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row of text embeddings comes from.

    kind: "prompt", "negative" (the second result of `encode_prompt`), or "unknown".
    prompt: the text; None where embeddings were passed without it.
    """

    kind: str
    prompt: str | None = None


class Prompts:
    """Observes `pipe.encode_prompt` from `install` to `remove`; `origins` answers for a forward."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._rows: list[tuple[torch.Tensor, Origin]] = []
        self._is_run_over = False
        self._last: tuple[weakref.ref, tuple[Origin, ...]] | None = None

    def install(self) -> None:
        stock = self._pipe.encode_prompt

        @functools.wraps(stock)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            result = stock(*args, **kwargs)
            self._note(inspect.signature(stock).bind(*args, **kwargs).arguments, result)
            return result

        # on the object, where it hides the method of the class
        self._pipe.encode_prompt = encode_prompt

    def remove(self) -> None:
        vars(self._pipe).pop("encode_prompt", None)
        self._rows, self._last = [], None

    @property
    def encoded(self) -> set[str | None]:
        """The prompts of the present run."""
        return {origin.prompt for _, origin in self._rows if origin.kind == "prompt"}

    def origins(self, embeddings: torch.Tensor) -> tuple[Origin, ...]:
        """One origin a row of the embeddings [B, T, C] that the model is given."""
        self._is_run_over = True
        if self._last is not None and self._last[0]() is embeddings:
            return self._last[1]
        found = tuple(self._origin(row) for row in embeddings)
        self._last = weakref.ref(embeddings), found
        return found

    def _origin(self, row: torch.Tensor) -> Origin:
        for known, origin in self._rows:
            if known.shape == row.shape and torch.equal(known.to(row), row):
                return origin
        return Origin("unknown")

    def _note(self, arguments: dict[str, Any], result: Any) -> None:
        if self._is_run_over:
            self._rows, self._last, self._is_run_over = [], None, False
        texts = _texts(arguments)
        positive, negative = result[0], result[1]
        repeats = len(positive) // len(texts)
        for i, row in enumerate(positive.detach()):
            self._rows.append((row, Origin("prompt", texts[i // repeats])))
        # other pipelines return pooled vectors or masks there, which have two dimensions
        if isinstance(negative, torch.Tensor) and negative.dim() == 3:
            self._rows += [(row, Origin("negative")) for row in negative.detach()]


def _texts(arguments: dict[str, Any]) -> list[str | None]:
    prompt = arguments.get("prompt")
    if prompt is None:
        return [None]
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    for name in ("prompt_2", "prompt_3"):
        other = arguments.get(name)
        others = [other] if isinstance(other, str) else other
        if others is not None and list(others) != texts:
            raise NotImplementedError(
                f"{name} differs from prompt, and a Scene describes one text for all encoders; "
                f"leave {name} out"
            )
    return texts
