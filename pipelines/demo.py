"""The same prompts and seed under several kinds of attention: pictures, time, quality."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from ..attn_processors.base import AttnProcessor
from .progress_bar import progress_bar
from .progressive import progressive
from .shapes.metrics import psnr, score
from .shapes.scene import parse_caption

__all__ = ["Drawing", "Settings", "Summary", "compare"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every picture is drawn: arguments of `progressive`."""

    height: int
    width: int
    steps: int
    seed: int
    base_size: int
    strength: float = 0.5
    call: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture, [height, width, 3] in 0..1.

    psnr: to the first method's picture of the same prompt, in dB; inf where they are equal.
    bind: 1 when every asked object reads back with its colour and shape, else 0.
    """

    prompt: str
    picture: np.ndarray
    seconds: float
    psnr: float
    bind: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One method on one model, over all prompts."""

    method: str
    drawings: tuple[Drawing, ...]

    @property
    def seconds(self) -> float:
        """Of a whole picture, median."""
        return median(drawing.seconds for drawing in self.drawings)

    @property
    def psnr(self) -> float:
        """Of the mean squared error over all pictures, in dB."""
        error = mean(10 ** (-drawing.psnr / 10) for drawing in self.drawings)
        return math.inf if error == 0 else -10 * math.log10(error)

    @property
    def bind(self) -> int:
        """Number of pictures that read back."""
        return sum(drawing.bind for drawing in self.drawings)


def compare(
    pipe: DiffusionPipeline,
    methods: Mapping[str, AttnProcessor | None],
    prompts: Sequence[str],
    settings: Settings,
    *,
    title: str = "pictures",
) -> list[Summary]:
    """Draw every prompt by every method, None being the pipeline's own attention.

    Prompts follow the caption grammar of the scenes. Methods take turns within a prompt, so that
    what else the machine does falls on all alike.
    """
    asks = [parse_caption(prompt) for prompt in prompts]
    drawings = {method: [] for method in methods}
    with progress_bar(pipe, disable=True), tqdm(total=len(methods) * len(asks), desc=title) as bar:
        for ask in asks:
            first = None
            for method, processor in methods.items():
                picture, seconds = _draw(pipe, ask.caption, processor, settings)
                first = picture if first is None else first
                drawing = Drawing(
                    prompt=ask.caption,
                    picture=picture,
                    seconds=seconds,
                    psnr=psnr(first, picture),
                    bind=score(picture, ask).bind,
                )
                drawings[method].append(drawing)
                bar.update()
    return [Summary(method=method, drawings=tuple(drawn)) for method, drawn in drawings.items()]


def _draw(
    pipe: DiffusionPipeline, prompt: str, processor: AttnProcessor | None, settings: Settings
) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    drawn = progressive(
        pipe,
        prompt,
        height=settings.height,
        width=settings.width,
        steps=settings.steps,
        base_size=settings.base_size,
        strength=settings.strength,
        attention=processor,
        generator=torch.Generator().manual_seed(settings.seed),
        call=settings.call,
        output_type="np",
    )
    return drawn.images[0], time.perf_counter() - start
