"""How well a picture shows what its caption asks for, and how far two pictures lie apart.

    BIND  1 when every asked (colour, shape) pair is in the picture, else 0
    COUNT 1 when every asked colour is there exactly as often as asked and nothing else is, else 0
    REL   1 when both objects of the asked relation are there and it holds between them, else 0;
          None when the caption asks for none
    LEAK  of the foreground, the share that carries an asked colour outside the region of the object
          it was asked for; None when the picture is unreadable

An unreadable picture scores 0 on the first three: mush is not left out of the mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .reader import NAMES, FoundObject, Reading, Trace, as_picture, trace
from .scene import Ask, relation_holds

__all__ = ["Interval", "Score", "bootstrap", "paired_bootstrap", "psnr", "score", "summarise"]

BATCH = 500  # resamples drawn at once: bounds memory at batch times number of values


@dataclass(frozen=True, slots=True)
class Score:
    """One picture against its caption; `extra` and `missing` are what COUNT counts."""

    num_objects: int
    bind: int
    count: int
    rel: int | None
    leak: float | None
    extra: int
    missing: int
    unreadable: str | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `num` values with its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float
    num: int


def score(picture: np.ndarray, ask: Ask) -> Score:
    """Score [H, W, 3], float in 0..1 or uint8, against `parse_caption(caption)`."""
    seen = trace(picture)
    n = len(ask.objects)
    if seen.reading.unreadable is not None:
        rel = None if ask.relation is None else 0
        return Score(n, 0, 0, rel, None, 0, n, seen.reading.unreadable)
    pairs = Counter((thing.colour, thing.shape) for thing in seen.reading.objects)
    colours = Counter(thing.colour for thing in seen.reading.objects)
    asked_colours = Counter(colour for colour, _ in ask.objects)
    extra, missing = (colours - asked_colours).total(), (asked_colours - colours).total()
    return Score(
        num_objects=n,
        bind=int(not Counter(ask.objects) - pairs),
        count=int(extra == missing == 0),
        rel=_relation(seen.reading, ask),
        leak=_leak(seen, ask),
        extra=extra,
        missing=missing,
        unreadable=None,
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures [H, W, 3] in dB; inf when they are equal."""
    a, b = as_picture(a), as_picture(b)
    if a.shape != b.shape:
        raise ValueError(f"pictures must have one shape, got {list(a.shape)} and {list(b.shape)}")
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def summarise(scores: Sequence[Score], samples: int = 10_000, seed: int = 0) -> dict[str, Interval]:
    """Mean and interval of every metric, over all pictures and by number of objects.

    Keys are `BIND`, `COUNT`, `REL`, `LEAK`, `UNREADABLE` and the same with ` 1`, ` 2`, ` 3` behind
    for the pictures that ask for as many objects; what has no value (REL of one) is left out.
    """
    if not scores:
        raise ValueError("scores must hold at least one Score, got none")
    groups = {"": list(scores)}
    for n in sorted({one.num_objects for one in scores}):
        groups[f" {n}"] = [one for one in scores if one.num_objects == n]
    summary = {}
    for suffix, group in groups.items():
        for name, values in _columns(group).items():
            if values:
                summary[name + suffix] = bootstrap(values, samples, seed)
    return summary


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], samples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of `a - b` with its interval, where a[i] and b[i] share prompt and seed.

    The pairs are resampled, so that what prompts have in common cancels. An interval without 0 is a
    difference at the 5 % level.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            "a and b must be two equally long lists of numbers, "
            f"got shapes {list(a.shape)} and {list(b.shape)}"
        )
    if not np.isfinite(a - b).all():
        raise ValueError("a and b must be finite; leave out pairs without a value in both")
    return bootstrap(a - b, samples, seed)


def bootstrap(values: Sequence[float], samples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of some numbers with its interval."""
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    values = np.asarray(values, np.float64)
    rng, n = np.random.default_rng(seed), values.size
    means = [
        values[rng.integers(n, size=(min(BATCH, samples - start), n))].mean(1)
        for start in range(0, samples, BATCH)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), n)


def _relation(reading: Reading, ask: Ask) -> int | None:
    """Between the largest objects of the first two asked pairs; a missing one makes it 0."""
    if ask.relation is None:
        return None
    first, second = (_find(reading.objects, pair) for pair in ask.objects[:2])
    if first is None or second is None:
        return 0
    return int(relation_holds(ask.relation, (first.x, first.y), (second.x, second.y)))


def _find(objects: Sequence[FoundObject], pair: tuple[str, str]) -> FoundObject | None:
    """The largest object of this colour and shape."""
    return next((thing for thing in objects if (thing.colour, thing.shape) == pair), None)


def _leak(seen: Trace, ask: Ask) -> float:
    """LEAK on the grid of `trace`.

    Foreground is what is not nearest to the background's colour, without the rim of every component
    (1 px inside, 2 px outside), where mixed colours mean nothing. The region of an asked object is
    its component; where the pair was not found, the components of its colour of undecided shape
    that do not lie in another component.
    """
    counted = seen.labels != NAMES.index(seen.reading.background)
    for region in seen.regions:
        inside, outside = (
            ndimage.binary_erosion(region),
            ndimage.binary_dilation(region, iterations=2),
        )
        counted &= inside | ~outside
    leaked = np.zeros_like(counted)
    for colour in {colour for colour, _ in ask.objects}:
        own = np.zeros_like(counted)
        for region in _own_regions(seen, ask, colour):
            own |= region
        leaked |= counted & ~own & (seen.labels == NAMES.index(colour))
    return float(leaked.sum() / max(1, counted.sum()))


def _own_regions(seen: Trace, ask: Ask, colour: str) -> list[np.ndarray]:
    """Where `colour` may be: as many components of each pair as asked, else the undecided ones."""
    by_pair = {}
    covers = np.sum(seen.regions, 0)
    for thing, region in zip(seen.reading.objects, seen.regions, strict=True):
        if thing.shape is not None or not (covers[region] > 1).any():
            by_pair.setdefault((thing.colour, thing.shape), []).append(region)
    own = []
    for pair, times in Counter(ask.objects).items():
        if pair[0] == colour:
            own += by_pair.get(pair, by_pair.get((colour, None), []))[:times]
    return own


def _columns(scores: Sequence[Score]) -> dict[str, list[float]]:
    return {
        "BIND": [one.bind for one in scores],
        "COUNT": [one.count for one in scores],
        "REL": [one.rel for one in scores if one.rel is not None],
        "LEAK": [one.leak for one in scores if one.leak is not None],
        "UNREADABLE": [int(one.unreadable is not None) for one in scores],
    }
