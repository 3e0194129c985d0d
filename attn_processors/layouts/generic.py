"""The rule for a model class that has no row: self-attention over a grid whose numbers fit.

A latent [B, C, h, w] or [B, C, f, h, w], its patch size from the config, and layers told apart by
their names. Joint layers stay dense: nothing in a call says whether its text comes first.
"""

from __future__ import annotations

import inspect

from torch import nn

from ...kernels.layout import TokenLayout
from .family import Arguments, Family
from .grids import halved_grids, patch_sizes, patched
from .kinds import by_name

__all__ = ["generic_family"]

_LATENTS = ("hidden_states", "sample")
_KINDS = by_name(
    ("*motion*", "temporal"),
    ("*temp*", "temporal"),
    ("*audio*", "audio"),
    ("*fuser*", "grounding"),
    ("*refiner*", "text"),
    ("*context*", "text"),
    ("*text*", "text"),
    ("*caption*", "text"),
    ("*cross*", "cross"),
    ("*.attn2", "cross"),
    ("*", "self"),
)


def generic_family(model: nn.Module) -> Family | None:
    """A guessed row, or None where the model's forward has no timestep and latent."""
    names = inspect.signature(type(model).forward).parameters
    if "timestep" not in names or not any(name in names for name in _LATENTS):
        return None
    return Family(layouts=_layouts, kind=_kind, is_guess=True)


def _kind(name: str, attention: nn.Module) -> str:
    is_cross = getattr(attention, "is_cross_attention", False)
    return "cross" if is_cross else _KINDS(name, attention)


def _layouts(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    latent = next(arguments[name] for name in _LATENTS if name in arguments)
    if latent.dim() not in (4, 5) or not _is_divisible(model, latent.shape[2:]):
        return ()
    frames, height, width = patched(model, latent)
    levels = halved_grids(height, width) if "sample" in arguments else ((height, width),)
    return tuple(TokenLayout(grid=(frames, h, w)) for h, w in levels)


def _is_divisible(model: nn.Module, sizes: tuple[int, ...]) -> bool:
    patches = patch_sizes(model)[-len(sizes) :]
    return all(size % patch == 0 for size, patch in zip(sizes, patches, strict=True))
