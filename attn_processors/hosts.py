"""The denoisers inside what a user hands over, and their attention layers by name pattern."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

__all__ = ["check_pattern", "denoiser_of", "denoisers_of", "matches", "set_processor"]

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
