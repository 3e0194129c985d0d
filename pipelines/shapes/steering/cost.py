"""What a modulation costs a step: time of the CPU, methods taking turns, against the plain run."""

from __future__ import annotations

import statistics
import time

from diffusers import DiffusionPipeline

from .measure import draw_batch
from .methods import methods_of
from .prompts import Prompt

__all__ = ["costs"]


def costs(
    pipe: DiffusionPipeline, name: str, prompt: Prompt, steps: int, rounds: int
) -> dict[str, float]:
    """Method -> median time over that of the plain pipeline in the same round."""
    methods = methods_of(name)
    ratios: dict[str, list[float]] = {method: [] for method in methods}
    draw_batch(pipe, name, "plain", [prompt], 0, steps)
    for _ in range(rounds):
        seconds = {}
        for method in methods:
            # of this process alone: other work on the machine does not count
            start = time.process_time()
            draw_batch(pipe, name, method, [prompt], 0, steps)
            seconds[method] = time.process_time() - start
        for method in methods:
            ratios[method].append(seconds[method] / seconds["plain"])
    return {method: statistics.median(values) for method, values in ratios.items()}
