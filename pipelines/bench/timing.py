"""Times several calls in turns, so that a slow moment of the machine falls on all of them.

Every candidate is called in every round, in an order that turns by one from round to round; figures
are medians over the rounds, and ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from tqdm import tqdm

__all__ = ["Spread", "interleave", "ratio", "spread", "stopwatch"]

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]

# a slow candidate leaves the rounds once it took so long, but not before the second
MAX_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of the seconds of a call, over so many rounds."""

    median: float
    low: float
    high: float
    rounds: int


def stopwatch(device: str, threads: int) -> Stopwatch:
    """Seconds of a call: device time by events on CUDA and ROCm, else the host's.

    On one CPU thread it is processor time, which other processes disturb least.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        return _event_stopwatch(device)
    if kind == "cpu":
        return _host_stopwatch(time.process_time if threads == 1 else time.perf_counter)
    return _host_stopwatch(time.perf_counter, torch.accelerator.synchronize)


def _event_stopwatch(device: str) -> Stopwatch:
    # filling it leaves nothing of the inputs in the cache, and keeps the device busy while the
    # call is queued, so that launching is not timed
    filler = torch.empty(1 << 28, dtype=torch.uint8, device=device)

    def seconds(call: Call) -> float:
        stream = torch.cuda.current_stream(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        filler.zero_()
        begin.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return seconds


def _host_stopwatch(clock: Callable[[], float], wait: Call = lambda: None) -> Stopwatch:
    def seconds(call: Call) -> float:
        wait()
        start = clock()
        call()
        wait()
        return clock() - start

    return seconds


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    seconds_of: Stopwatch,
    title: str = "rounds",
    show: bool = True,
) -> dict[str, list[float]]:
    """{name: seconds of each round} of calls that take turns; each has run once before."""
    names, taken = list(calls), {name: [] for name in calls}
    with tqdm(total=len(calls) * rounds, desc=title, disable=not show) as bar:
        for turn in range(rounds):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                if turn < 2 or sum(taken[name]) < MAX_SECONDS:
                    taken[name].append(seconds_of(calls[name]))
                bar.update()
    return taken


def spread(seconds: Sequence[float]) -> Spread:
    """Median and quartiles."""
    ends = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return Spread(median(seconds), ends[0], ends[2], len(seconds))


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """How many times faster than `base`: median over the rounds that both were in."""
    return median(b / s for s, b in zip(seconds, base, strict=False))
