"""The layout table: per model class, token order, grid, and what each layer attends to.

A family is one row. `layouts` maps the named arguments of the model's `forward` to the token
layouts that its attention calls may have; a call is matched to one by its number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..kernels.layout import Segment, TokenLayout

__all__ = ["FAMILIES", "Family", "attention_layers", "family_of", "halved_grids"]

Arguments = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one model class lays out its tokens.

    layouts: (model, arguments of forward) -> the layouts its self-attention and joint calls may
        have.
    kind: (layer name, attention module) -> "self", "joint", "cross" or "text".
    source: the argument whose values `layouts` reads, beside shapes. The answer is reused while it
        is the same object and all shapes are the same; None means shapes alone.
    timestep: the argument of forward that holds the timestep.
    timestep_scale: that argument times this lies on the scheduler's scale, 0 to 1000.
    """

    layouts: Callable[[nn.Module, Arguments], tuple[TokenLayout, ...]]
    kind: Callable[[str, nn.Module], str]
    source: str | None = None
    timestep: str = "timestep"
    timestep_scale: float = 1.0


def halved_grids(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """A grid and all its halvings, rounded up as stride-2 convolutions do, down to 1 x 1."""
    grids = [(height, width)]
    while grids[-1] != (1, 1):
        h, w = grids[-1]
        grids.append(((h + 1) // 2, (w + 1) // 2))
    return tuple(grids)


def _unet_layouts(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    height, width = arguments["sample"].shape[-2:]
    return tuple(TokenLayout(grid=(1, h, w)) for h, w in halved_grids(height, width))


def _sd3_layouts(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    size = model.config.patch_size
    height, width = (n // size for n in arguments["hidden_states"].shape[-2:])
    text = arguments["encoder_hidden_states"].shape[1]
    grid = (1, height, width)
    return TokenLayout(text=text, grid=grid, text_first=False), TokenLayout(grid=grid)


def _flux_layouts(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    text = arguments["encoder_hidden_states"].shape[1]
    found = _grid_of_ids(arguments["img_ids"])
    if found is None:
        return ()
    grid, rest = found
    extra = (Segment(rest),) if rest else ()
    return (TokenLayout(text=text, grid=grid, extra=extra),)


def _grid_of_ids(ids: torch.Tensor) -> tuple[tuple[int, int, int], int] | None:
    """Grid of Flux's (image, row, column) ids, and the tokens after it; None unless in raster
    order.

    Counts rows and columns rather than taking maxima: in bfloat16 ids above 256 are rounded.
    """
    ids = ids.detach().reshape(-1, ids.shape[-2], 3)[0].float().cpu()
    num_main = int((ids[:, 0] == ids[0, 0]).cumprod(0).sum())
    width = int((ids[:num_main, 1] == ids[0, 1]).cumprod(0).sum())
    rows, columns = ids[:num_main:width, 1], ids[:width, 2]
    is_sorted = bool((rows.diff() >= 0).all() and (columns.diff() >= 0).all())
    in_raster = torch.cartesian_prod(rows, columns)
    if not (is_sorted and torch.equal(ids[:num_main, 1:], in_raster)):
        return None
    return (1, len(rows), width), len(ids) - num_main


def _unet_kind(name: str, attention: nn.Module) -> str:
    return "cross" if attention.is_cross_attention else "self"


def _flux_kind(name: str, attention: nn.Module) -> str:
    return "joint"


def _sd3_kind(name: str, attention: nn.Module) -> str:
    return "self" if name.endswith(".attn2") else "joint"


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "UNet2DConditionModel": Family(layouts=_unet_layouts, kind=_unet_kind),
        "FluxTransformer2DModel": Family(
            layouts=_flux_layouts, kind=_flux_kind, source="img_ids", timestep_scale=1000.0
        ),
        "SD3Transformer2DModel": Family(layouts=_sd3_layouts, kind=_sd3_kind),
    }
)


def family_of(model: nn.Module) -> Family:
    """The row of the model's class, or of a class it inherits from.

    Raises NotImplementedError where there is none.
    """
    for base in type(model).__mro__:
        if base.__name__ in FAMILIES:
            return FAMILIES[base.__name__]
    raise NotImplementedError(
        f"foveate does not know the token layout of {type(model).__name__}. "
        f"Known: {', '.join(FAMILIES)}. A family is one row of FAMILIES, in layouts.py."
    )


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every attention module of the model by name: those that hold a callable `processor`."""
    return {
        name: module
        for name, module in model.named_modules()
        if callable(getattr(module, "processor", None))
    }
