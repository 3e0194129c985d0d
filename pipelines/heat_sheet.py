"""One labelled picture of attention: the drawing, and heat maps of phrases over it, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["heat_sheet"]

_CELL = 192  # pixels a side of a picture's place
_GAP = 12
_LINE = 20  # height of a line of text
_INK, _FAINT, _PAPER = (25, 25, 30), (110, 110, 118), (255, 255, 255)
# from nothing over red to yellow, as a map of light
_COLD, _WARM, _HOT = (
    np.array(c, np.float32) / 255 for c in ((25, 20, 60), (230, 60, 30), (255, 240, 110))
)


def heat_sheet(
    picture: Image.Image, rows: Sequence[tuple[str, Mapping[str, np.ndarray]]]
) -> Image.Image:
    """`rows` are (label, {phrase: map [h, w] >= 0}) with the same phrases in each.

    A phrase has one scale in all rows; its largest value stands under its name.
    """
    names = list(rows[0][1])
    tops = {name: max(float(maps[name].max()) for _, maps in rows) for name in names}
    size = ((len(names) + 1) * (_CELL + _GAP) + _GAP, _top(len(rows)))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    cell = picture.convert("RGB").resize(_fitted(picture.size), Image.Resampling.NEAREST)
    gray = np.asarray(cell.convert("L"), np.float32)[..., None] / 255
    for column, name in enumerate(names, start=1):
        _text(draw, (_left(column), _GAP), name, _INK, 15)
        _text(draw, (_left(column), _GAP + _LINE), f"at most {tops[name]:.3f}", _FAINT, 13)
    for row, (label, maps) in enumerate(rows):
        _text(draw, (_left(0), _top(row) - _LINE), label, _FAINT, 13)
        sheet.paste(cell, (_left(0), _top(row)))
        for column, name in enumerate(names, start=1):
            heat = maps[name] / max(tops[name], 1e-12)
            sheet.paste(_over(gray, heat), (_left(column), _top(row)))
    return sheet


def _left(column: int) -> int:
    return _GAP + column * (_CELL + _GAP)


def _top(row: int) -> int:
    return _GAP + 3 * _LINE + row * (_CELL + _GAP + _LINE)


def _text(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, ink, size: int) -> None:
    draw.text(place, text, fill=ink, font=ImageFont.load_default(size))


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    scale = _CELL / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _over(gray: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Heat in 0..1 of any size over a picture [H, W, 1] that shines through."""
    height, width = gray.shape[:2]
    heat = Image.fromarray(heat.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    level = np.clip(np.asarray(heat), 0, 1)[..., None]
    low, high = np.clip(2 * level, 0, 1), np.clip(2 * level - 1, 0, 1)
    colour = (_COLD * (1 - low) + _WARM * low) * (1 - high) + _HOT * high
    pixels = 0.75 * colour + 0.25 * gray
    return Image.fromarray((pixels * 255).round().astype(np.uint8))
