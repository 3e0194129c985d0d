"""One labelled picture of a comparison: rows are prompts, columns methods, grouped by model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .demo import Drawing, Summary

__all__ = ["comparison_sheet"]

_CELL = 256  # pixels a side of a picture's place
_GAP = 12
_LINE = 24  # height of a line of text
_INK, _FAINT, _PAPER = (25, 25, 30), (110, 110, 118), (255, 255, 255)


def comparison_sheet(blocks: Mapping[str, Sequence[Summary]]) -> Image.Image:
    """`blocks` maps a title to the methods of one model; all have the same prompts."""
    columns = sum(len(summaries) for summaries in blocks.values())
    prompts = [drawing.prompt for drawing in next(iter(blocks.values()))[0].drawings]
    step = _CELL + _GAP
    width = columns * step + _GAP * len(blocks)
    sheet = Image.new("RGB", (width, 3 * _LINE + len(prompts) * (step + 2 * _LINE)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _rows(draw, prompts, width)
    x = _GAP
    for title, summaries in blocks.items():
        draw.text((x, _GAP), title, fill=_INK, font=ImageFont.load_default(19))
        for summary in summaries:
            _column(sheet, draw, summary, x)
            x += step
        x += _GAP
    return sheet


def _top(row: int) -> int:
    """Upper edge of a row's text."""
    return 3 * _LINE + row * (_CELL + _GAP + 2 * _LINE)


def _rows(draw: ImageDraw.ImageDraw, prompts: Sequence[str], width: int) -> None:
    for row, prompt in enumerate(prompts):
        draw.text((_GAP, _top(row)), prompt, fill=_INK, font=ImageFont.load_default(16))


def _column(sheet: Image.Image, draw: ImageDraw.ImageDraw, summary: Summary, x: int) -> None:
    draw.text((x, _GAP + _LINE), summary.method, fill=_FAINT, font=ImageFont.load_default(16))
    for row, drawing in enumerate(summary.drawings):
        y = _top(row) + _LINE
        sheet.paste(_fit(drawing.picture), (x, y))
        label = (x, y + _CELL + 3)
        draw.text(label, _caption(drawing), fill=_FAINT, font=ImageFont.load_default(13))


def _caption(drawing: Drawing) -> str:
    parts = [f"{drawing.seconds:.1f} s"]
    if math.isfinite(drawing.psnr):
        parts.append(f"PSNR {drawing.psnr:.1f} dB")
    parts.append("reads back" if drawing.bind else "does not read back")
    return "   ".join(parts)


def _fit(picture: np.ndarray) -> Image.Image:
    """[H, W, 3] in 0..1, in the middle of a square cell."""
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    scale = _CELL / max(image.size)
    image = image.resize([max(1, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (_CELL, _CELL), _PAPER)
    cell.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return cell
