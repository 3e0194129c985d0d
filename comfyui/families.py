"""The layout table: how ComfyUI's models order the tokens of an attention call.

What holds for a whole forward is read once from the arguments of `apply_model`; a layer's own grid
from `transformer_options`, where a UNet leaves it. A family is a row of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels import Segment, TokenLayout
from .call import AttentionCall

__all__ = ["FAMILIES", "Geometry", "family_of", "read_geometry"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Tokens of one forward of a model: its grid, its prompt, its reference images."""

    grid: tuple[int, int, int]
    text: int
    references: tuple[int, ...]


Layouts = Callable[[AttentionCall, Geometry], TokenLayout | str]


def _unet(call: AttentionCall, geometry: Geometry) -> TokenLayout | str:
    """Self-attention on the grid of the layer; the level is known from `activations_shape`."""
    shape = call.options.get("activations_shape")
    if shape is None or len(shape) != 4:
        return "the layer does not say the size of its grid"
    batch, _, height, width = shape
    # attention over frames has a batch of all places, and would pass for a grid of its own
    if call.q.shape[0] != batch:
        return f"a batch of {call.q.shape[0]} where the layer has {batch}: another axis, or tiles"
    return _image_only(call, (1, height, width), geometry.text)


def _video(call: AttentionCall, geometry: Geometry) -> TokenLayout | str:
    """Self-attention over frames, rows and columns."""
    return _image_only(call, geometry.grid, geometry.text)


def _image_only(call: AttentionCall, grid: tuple[int, int, int], text: int) -> TokenLayout | str:
    layout, tokens = TokenLayout(grid=grid), call.q.shape[2]
    if tokens != layout.num_tokens:
        return f"{tokens} tokens, but the grid has {_show(grid)}"
    if tokens == text:
        return f"the prompt has {text} tokens, like the grid: cross- and self-attention look alike"
    return layout


def _joint(call: AttentionCall, geometry: Geometry) -> TokenLayout | str:
    """Text, image, reference images in one sequence, or the image alone (SD3.5's second branch)."""
    tokens, references = call.q.shape[2], geometry.references
    image = TokenLayout(grid=geometry.grid)
    extra = tuple(Segment(length) for length in references)
    whole = TokenLayout(text=geometry.text, grid=geometry.grid, extra=extra)
    for layout in (whole, image):
        if tokens == layout.num_tokens:
            return layout
    parts = f"{geometry.text} of text + {_show(geometry.grid)} of grid"
    if references:
        parts += f" + {sum(references)} of references"
    return f"{tokens} tokens are not {parts}"


def _show(grid: tuple[int, int, int]) -> str:
    frames, height, width = grid
    return f"{height} x {width}" if frames == 1 else f"{frames} x {height} x {width}"


# module and class below comfy.ldm; a subclass has the row of its nearest base
FAMILIES: dict[str, Layouts] = {
    "chroma.model.Chroma": _joint,
    "flux.model.Flux": _joint,
    "modules.diffusionmodules.mmdit.MMDiT": _joint,
    "modules.diffusionmodules.openaimodel.UNetModel": _unet,
    "qwen_image.model.QwenImageTransformer2DModel": _joint,
    "wan.model.WanModel": _video,
}


def family_of(diffusion_model: torch.nn.Module) -> Layouts | None:
    """The row of a model, or None for one that is not in the table."""
    for base in type(diffusion_model).__mro__:
        name = f"{base.__module__}.{base.__qualname__}".partition("comfy.ldm.")[2]
        if name in FAMILIES:
            return FAMILIES[name]
    return None


def read_geometry(
    diffusion_model: torch.nn.Module,
    x: torch.Tensor,
    context: torch.Tensor | None,
    references: list[torch.Tensor],
) -> Geometry:
    """The tokens of a forward from the latent x [B, C, h, w] or [B, C, f, h, w] and the prompt."""
    patch = _patch_size(diffusion_model)
    text = 0 if context is None else context.shape[1]
    # learnt tokens that MMDiT puts before the prompt
    text += getattr(diffusion_model, "register_length", 0)
    sizes = (_grid(reference, patch) for reference in references)
    return Geometry(_grid(x, patch), text, tuple(f * h * w for f, h, w in sizes))


def _patch_size(diffusion_model: torch.nn.Module) -> tuple[int, int, int]:
    size = getattr(diffusion_model, "patch_size", 1)
    return (1, size, size) if isinstance(size, int) else (1, 1, 1, *size)[-3:]


def _grid(x: torch.Tensor, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    frames = x.shape[2] if x.dim() == 5 else 1
    sizes = (frames, *x.shape[-2:])
    return tuple(-(-size // side) for size, side in zip(sizes, patch, strict=True))
