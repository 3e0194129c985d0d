"""What a modulation costs a step: time of the CPU, methods taking turns, against the plain run."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

from diffusers import DiffusionPipeline

from .edits import ALONE, draw_edit, edits_of
from .measure import draw_batch
from .methods import COST_ALONE, methods_of
from .prompts import Prompt

__all__ = ["costs"]


def costs(
    pipe: DiffusionPipeline, name: str, prompt: Prompt, steps: int, rounds: int
) -> dict[str, float]:
    """Method -> median time over that of the plain pipeline in the same round.

    Edits of a prompt draw two pictures, and are held against the two prompts without the edit.
    """
    runs, plain = _runs(pipe, name, prompt, steps)
    ratios: dict[str, list[float]] = {method: [] for method in runs}
    for method in set(plain.values()):
        runs[method]()
    for _ in range(rounds):
        seconds = {}
        for method, run in runs.items():
            # of this process alone: other work on the machine does not count
            start = time.process_time()
            run()
            seconds[method] = time.process_time() - start
        for method in runs:
            ratios[method].append(seconds[method] / seconds[plain[method]])
    return {method: statistics.median(values) for method, values in ratios.items()}


def _runs(
    pipe: DiffusionPipeline, name: str, prompt: Prompt, steps: int
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Method -> what is timed, and method -> the one it is held against."""
    runs, plain = {}, {}
    for method in (*methods_of(name), *COST_ALONE):
        runs[method] = functools.partial(draw_batch, pipe, name, method, [prompt], 0, steps)
        plain[method] = "plain"
    for edit in edits_of(name):
        runs[edit] = functools.partial(draw_edit, pipe, name, edit, prompt, 0, steps)
        plain[edit] = ALONE
    return runs, plain
