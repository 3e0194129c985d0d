"""The same prompts and seed under several kinds of attention: pictures, time, work, quality."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean, median

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from ..attn_processors import SoftmaxAttnProcessor, apply
from ..attn_processors.base import AttnProcessor
from .largest_tensor import LargestTensor
from .progressive import progressive
from .shapes.metrics import psnr, score
from .shapes.scene import parse_caption

__all__ = ["Drawing", "Settings", "Summary", "compare"]

Methods = Mapping[str, AttnProcessor | None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every picture is drawn: arguments of `progressive`."""

    height: int
    width: int
    steps: int
    seed: int
    base_size: int
    strength: float = 0.7
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
    """One method on one model.

    tokens, keys: of the attention layer with most tokens, at full size; keys are those a query is
        compared with, mean over its queries.
    largest_tensor: bytes, in one step at full size.
    """

    method: str
    drawings: tuple[Drawing, ...]
    tokens: int
    keys: float
    largest_tensor: int

    @property
    def seconds(self) -> float:
        """Of a whole picture, median over the prompts."""
        return median(drawing.seconds for drawing in self.drawings)

    @property
    def psnr(self) -> float:
        """Of the mean squared error over all pictures, in dB."""
        error = mean(10 ** (-drawing.psnr / 10) for drawing in self.drawings)
        return math.inf if error == 0 else -10 * math.log10(error)

    @property
    def bind(self) -> float:
        return mean(drawing.bind for drawing in self.drawings)


def compare(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    methods: Methods,
    settings: Settings,
    *,
    title: str = "compare",
) -> list[Summary]:
    """Draw every prompt by every method, None being the pipeline's own attention.

    Prompts follow the caption grammar of the scenes. Methods take turns within a prompt, so that
    what else the machine does falls on all alike.
    """
    asks = [parse_caption(prompt) for prompt in prompts]
    drawings = {method: [] for method in methods}
    with _without_bar(pipe), tqdm(total=len(methods) * (len(asks) + 1), desc=title) as bar:
        work = {}
        for method, processor in methods.items():
            work[method] = _work(pipe, prompts[0], processor, settings)
            bar.update()
        for ask in asks:
            pictures = []
            for method, processor in methods.items():
                picture, seconds = _draw(pipe, ask.caption, processor, settings)
                pictures.append(picture)
                drawings[method].append(
                    Drawing(
                        prompt=ask.caption,
                        picture=picture,
                        seconds=seconds,
                        psnr=psnr(pictures[0], picture),
                        bind=score(picture, ask).bind,
                    )
                )
                bar.update()
    return [_summary(method, drawings[method], *work[method]) for method in methods]


def _summary(
    method: str, drawings: Sequence[Drawing], tokens: int, keys: float, num_bytes: int
) -> Summary:
    return Summary(
        method=method,
        drawings=tuple(drawings),
        tokens=tokens,
        keys=keys,
        largest_tensor=num_bytes,
    )


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


def _work(
    pipe: DiffusionPipeline, prompt: str, processor: AttnProcessor | None, settings: Settings
) -> tuple[int, float, int]:
    """Tokens and keys per query of the largest layer, and the largest tensor, in one step."""
    # dense is the stock attention bit for bit, with a report
    processor = SoftmaxAttnProcessor() if processor is None else processor
    with apply(pipe, processor) as handle, LargestTensor() as largest:
        pipe(
            prompt,
            height=settings.height,
            width=settings.width,
            num_inference_steps=1,
            output_type="latent",
            **settings.call,
        )
        rows = [row for row in handle.report().layers if row.tokens is not None]
    top = max(rows, key=lambda row: row.tokens)
    return top.tokens, top.keys.visited, largest.num_bytes


@contextmanager
def _without_bar(pipe: DiffusionPipeline) -> Iterator[None]:
    config = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**config)
