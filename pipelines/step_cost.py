"""What one denoising step costs under several kinds of attention: time, keys visited, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from ..attn_processors import SoftmaxAttnProcessor, apply
from ..attn_processors.base import AttnProcessor
from .bench.timing import stopwatch
from .largest_tensor import LargestTensor
from .progress_bar import progress_bar

__all__ = ["StepCost", "step_costs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """One method, one step.

    tokens: of the attention layer that has most; keys: those a query is compared with there, mean.
    seconds: median over the repeats, text encoding included, decoding not.
    largest_tensor: bytes.
    """

    method: str
    tokens: int
    keys: float
    seconds: float
    largest_tensor: int


def step_costs(
    pipe: DiffusionPipeline,
    methods: Mapping[str, AttnProcessor | None],
    prompt: str,
    *,
    height: int,
    width: int,
    call: Mapping[str, object],
    repeats: int = 3,
    title: str = "one step",
) -> list[StepCost]:
    """Cost of a step at height x width pixels; None is the pipeline's own attention.

    The first run of a method is measured for memory and not for time; then methods take turns.
    """

    step = partial(
        pipe,
        prompt,
        height=height,
        width=width,
        num_inference_steps=1,
        output_type="latent",
        **call,
    )
    work, seconds = {}, {method: [] for method in methods}
    seconds_of = stopwatch(str(pipe.device), torch.get_num_threads())
    total = len(methods) * (1 + repeats)
    with progress_bar(pipe, disable=True), tqdm(total=total, desc=title) as bar:
        for method, processor in methods.items():
            work[method] = _work(pipe, processor, step)
            bar.update()
        for _ in range(repeats):
            for method, processor in methods.items():
                with nullcontext() if processor is None else apply(pipe, processor):
                    seconds[method].append(seconds_of(step))
                bar.update()
    return [
        StepCost(
            method=method,
            tokens=tokens,
            keys=keys,
            seconds=median(seconds[method]),
            largest_tensor=num_bytes,
        )
        for method, (tokens, keys, num_bytes) in work.items()
    ]


def _work(
    pipe: DiffusionPipeline, processor: AttnProcessor | None, step: Callable[[], object]
) -> tuple[int, float, int]:
    """Tokens and keys per query of the largest layer, and the largest tensor in bytes."""
    # dense is the stock attention bit for bit, with a report
    processor = SoftmaxAttnProcessor() if processor is None else processor
    with apply(pipe, processor) as handle, LargestTensor() as largest:
        step()
        rows = [row for row in handle.report().layers if row.tokens is not None]
    top = max(rows, key=lambda row: row.tokens)
    return top.tokens, top.keys.visited, largest.num_bytes
