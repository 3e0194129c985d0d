"""Text length and grid read back from Flux's rotary embedding, for calls that carry nothing else.

Text tokens sit at position (0, 0, 0), image tokens at (0, row, column) in raster order. The first
image token is at (0, 0, 0) too, so the text is one token shorter than the run of zero angles.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from ..kernels.layout import TokenLayout

__all__ = ["RotaryReader"]


class RotaryReader:
    """Reads the layout once per rotary embedding, which all layers share: it waits for the GPU."""

    def __init__(self) -> None:
        self._sin: weakref.ref | None = None
        self._layout: TokenLayout | None = None

    def read(
        self, rotary: tuple[torch.Tensor, torch.Tensor] | None, text: int | None
    ) -> TokenLayout:
        """The layout behind (cos, sin), each [N, D]; `text` is its length where the call tells it.

        Raises ValueError where the embedding is not that of one image in raster order.
        """
        if torch.compiler.is_compiling():
            raise ValueError(
                "the grid cannot be read inside torch.compile; pass grid= or use foveate.apply"
            )
        if rotary is None:
            raise ValueError(
                "the call has no rotary embedding to read the grid from; "
                "pass grid= or use foveate.apply"
            )
        sin = rotary[1]
        if self._sin is None or self._sin() is not sin:
            self._layout = _layout_of(sin)
            self._sin = weakref.ref(sin)
        if self._layout is None or (text is not None and self._layout.text != text):
            raise ValueError(
                "the rotary embedding is not that of text and one image in raster order "
                "(reference images, or tokens split over ranks?); use foveate.apply"
            )
        return self._layout

    def __getstate__(self) -> dict[str, Any]:
        return {"_sin": None, "_layout": None}


def _layout_of(sin: torch.Tensor) -> TokenLayout | None:
    """Layout behind the sines [N, D], or None where they are not of text and one raster grid."""
    sin = sin.detach().cpu()
    moved = (sin != 0).any(-1)
    num_zero = int((~moved).cumprod(0).sum())
    if num_zero == 0:
        return None
    image = sin[num_zero - 1 :]
    width = _row_length(image)
    # the first angle is the image index, which reference images after the first have
    if len(image) % width or image[:, 0].any():
        return None
    by_row = image.view(-1, width, image.shape[-1])
    is_raster = torch.equal(by_row - by_row[:, :1], (by_row - by_row[:, :1])[:1].expand_as(by_row))
    return (
        TokenLayout(text=num_zero - 1, grid=(1, len(image) // width, width)) if is_raster else None
    )


def _row_length(image: torch.Tensor) -> int:
    """Tokens before the column angles, those that token 1 has, are zero again."""
    if len(image) == 1:
        return 1
    column_angles = image[:, image[1] != 0]
    at_zero = (column_angles == 0).all(-1)
    at_zero[0] = False
    return int(at_zero.long().argmax()) if at_zero.any() else len(image)
