"""The denoisers inside what a user hands over, and their attention layers by name pattern."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

__all__ = [
    "check_pattern",
    "denoiser_of",
    "denoisers_of",
    "heads_of",
    "matches",
    "pattern_list",
    "set_processor",
]

# Wan 2.2 has two transformers, one for the noisier part of the schedule
_DENOISERS = ("transformer", "transformer_2", "unet")


def denoisers_of(pipe_or_model: object, caller: str) -> tuple[dict[str, nn.Module], object | None]:
    """The models to change by name, and the pipeline around them, if one was given."""
    if isinstance(pipe_or_model, nn.Module):
        models, pipe = {"model": pipe_or_model}, None
    else:
        found = ((name, getattr(pipe_or_model, name, None)) for name in _DENOISERS)
        models, pipe = {name: part for name, part in found if part is not None}, pipe_or_model
    if not models:
        raise ValueError(
            f"{caller} needs a diffusers pipeline or its denoiser, "
            f"got {type(pipe_or_model).__name__}"
        )
    # torch.compile(model) wraps the module that holds the layers
    return {name: getattr(model, "_orig_mod", model) for name, model in models.items()}, pipe


def denoiser_of(pipe_or_model: object, caller: str) -> tuple[nn.Module, object | None]:
    """The model to change and the pipeline around it, if one was given.

    Raises NotImplementedError for a pipeline with two denoisers.
    """
    models, pipe = denoisers_of(pipe_or_model, caller)
    if len(models) > 1:
        raise NotImplementedError(
            f"{caller} works on one denoiser, and {type(pipe).__name__} has {' and '.join(models)}"
        )
    return next(iter(models.values())), pipe


def set_processor(module: nn.Module, processor: object) -> None:
    """Make `processor` that of one attention module, of either generation of diffusers."""
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor


def heads_of(module: nn.Module) -> int:
    """Query heads of one attention module: Kandinsky and a few others have `num_heads`."""
    return module.heads if hasattr(module, "heads") else module.num_heads


def matches(name: str, pattern: str) -> bool:
    """Whether the layer name fits the pattern."""
    # diffusers' own names for processors end in ".processor"
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f"{name}.processor", pattern)


def pattern_list(layers: str | Sequence[str] | None) -> list[str]:
    """The patterns of an option `layers`; None is every layer.

    Raises ValueError for anything else.
    """
    if layers is None:
        return ["*"]
    if not isinstance(layers, Sequence):
        raise ValueError(
            f"layers must be a pattern of layer names or a list of them, got {layers!r}"
        )
    return [layers] if isinstance(layers, str) else list(layers)


def check_pattern(
    pattern: str, kinds: Mapping[str, str], targets: Iterable[str], where: str
) -> None:
    """Raise ValueError unless the pattern matches one of `targets`; `where` says what these are."""
    if not isinstance(pattern, str):
        raise ValueError(f"a pattern of layer names must be a string, got {pattern!r}")
    if any(matches(name, pattern) for name in targets):
        return
    others = sorted({kind for name, kind in kinds.items() if matches(name, pattern)})
    if others:
        raise ValueError(f"{pattern!r} matches only {' and '.join(others)} layers; {where}")
    near = difflib.get_close_matches(pattern, list(kinds), n=3, cutoff=0.0)
    raise ValueError(f"{pattern!r} matches no attention layer; near: {', '.join(near)}")
