"""Which prompt each row of a batch was made from: modulations touch the rows of their own prompt.

Batches hold conditional and unconditional halves in either order, several prompts, or come as two
forwards. Nothing of that is guessed: the pipeline's `encode_prompt` is observed, and the rows of
the text embeddings that the model is given are compared with what it returned. Further texts that
modulations ask for are encoded beside it, with the same settings.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
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
    """Observes `pipe.encode_prompt` from `install` to `remove`; `origins` answers for a forward.

    texts: what to encode beside the prompts of every run.
    arguments: of the last call of `encode_prompt`.
    encodings: text -> its embedding [T, C], and which of its tokens are no padding [T], None where
        the pipeline does not tell.
    """

    def __init__(self, pipe: Any, texts: Sequence[str] = ()) -> None:
        self._pipe = pipe
        self._texts = tuple(dict.fromkeys(texts))
        self.arguments: dict[str, Any] = {}
        self.encodings: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._rows: list[tuple[torch.Tensor, Origin]] = []
        self._is_run_over = False
        self._last: tuple[weakref.ref, tuple[Origin, ...]] | None = None
        self._ours: Callable | None = None
        self._hidden: Callable | None = None

    def install(self) -> None:
        stock = self._pipe.encode_prompt

        @functools.wraps(stock)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            result = stock(*args, **kwargs)
            arguments = inspect.signature(stock).bind(*args, **kwargs).arguments
            self._note(arguments, result)
            is_new = _settings(arguments) != _settings(self.arguments)
            self.arguments = arguments
            if self._texts and (is_new or not self.encodings):
                self.encodings = self._encode(stock)
            return result

        # on the object, where it hides the method of the class, and one that a user has put there
        self._hidden = vars(self._pipe).get("encode_prompt")
        self._ours = self._pipe.encode_prompt = encode_prompt

    def remove(self) -> None:
        if vars(self._pipe).get("encode_prompt") is self._ours:
            del self._pipe.encode_prompt
            if self._hidden is not None:
                self._pipe.encode_prompt = self._hidden
        self._forget()

    def _forget(self) -> None:
        self._rows, self._last, self._is_run_over = [], None, False
        self.arguments, self.encodings = {}, {}

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
            self._forget()
        texts = _texts(arguments)
        positive = result[0]
        repeats = len(positive) // len(texts)
        for i, row in enumerate(positive.detach()):
            self._rows.append((row, Origin("prompt", texts[i // repeats])))
        # pooled vectors, masks and positions have two dimensions
        for other in result[1:]:
            if isinstance(other, torch.Tensor) and other.dim() == 3:
                self._rows += [(row, Origin("negative")) for row in other.detach()]

    def _encode(self, stock: Callable) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """The further texts, encoded as the prompt was."""
        if getattr(self._pipe, "text_encoder", None) is None:
            raise ValueError(
                f"modulations of this run need {', '.join(map(repr, self._texts))} encoded, and "
                "the pipeline has no text_encoder; load it, or leave them out"
            )
        names = inspect.signature(stock).parameters
        call = _settings(self.arguments)
        fixed = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        call |= {name: value for name, value in fixed.items() if name in names}
        result = stock(prompt=list(self._texts), **call)
        is_masked = "prompt_attention_mask" in names
        valid = result[1].bool() if is_masked else [None] * len(self._texts)
        return dict(zip(self._texts, zip(result[0].detach(), valid, strict=True), strict=True))


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a call of `encode_prompt` says beside the prompts."""
    return {name: value for name, value in arguments.items() if "prompt" not in name}


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
