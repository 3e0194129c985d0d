"""What a model does not read of a prompt that is too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import console

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["note_cut_prompt"]

_TOKENIZERS = ("tokenizer_3", "tokenizer_2", "tokenizer")


def note_cut_prompt(pipe: DiffusionPipeline, prompt: str) -> None:
    """Say where the model stops reading the prompt: diffusers' own word on it is silenced here."""
    # the last reads most; others beside it give a summary
    tokenizers = (getattr(pipe, name, None) for name in _TOKENIZERS)
    tokenizer = next((one for one in tokenizers if one is not None), None)
    if tokenizer is None:
        return
    read, limit = tokenizer(prompt).input_ids, tokenizer.model_max_length
    if len(read) > limit:
        kept = tokenizer.decode(read[: limit - 1], skip_special_tokens=True)
        console(stderr=True).print(
            f"the prompt has {len(read)} tokens, the model reads {limit}: up to {kept[-40:]!r}"
        )
