"""The denoiser inside what a user hands over, and its attention layers by name pattern."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

__all__ = ["check_pattern", "denoiser_of", "matches", "set_processor"]


def denoiser_of(pipe_or_model: object, caller: str) -> tuple[nn.Module, object | None]:
    """The model to change and the pipeline around it, if one was given."""
    if isinstance(pipe_or_model, nn.Module):
        model, pipe = pipe_or_model, None
    else:
        names = ("transformer", "unet", "transformer_2")
        parts = (getattr(pipe_or_model, name, None) for name in names)
        model, pipe = next((part for part in parts if part is not None), None), pipe_or_model
    if model is None:
        raise ValueError(
            f"{caller} needs a diffusers pipeline or its denoiser, "
            f"got {type(pipe_or_model).__name__}"
        )
    # torch.compile(model) wraps the module that holds the layers
    return getattr(model, "_orig_mod", model), pipe


def set_processor(module: nn.Module, processor: object) -> None:
    """Make `processor` that of one attention module, of either generation of diffusers."""
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor


def matches(name: str, pattern: str) -> bool:
    """Whether the layer name fits the pattern."""
    # diffusers' own names for processors end in ".processor"
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f"{name}.processor", pattern)


def check_pattern(
    pattern: str, kinds: Mapping[str, str], targets: Iterable[str], where: str
) -> None:
    """Raise ValueError unless the pattern matches one of `targets`; `where` says what these are."""
    if any(matches(name, pattern) for name in targets):
        return
    others = sorted({kind for name, kind in kinds.items() if matches(name, pattern)})
    if others:
        raise ValueError(f"{pattern!r} matches only {' and '.join(others)} layers; {where}")
    near = difflib.get_close_matches(pattern, list(kinds), n=3, cutoff=0.0)
    raise ValueError(f"{pattern!r} matches no attention layer; near: {', '.join(near)}")
