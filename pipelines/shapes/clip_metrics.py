"""How well a clip shows what its caption asks for.

BIND      1 when every asked (colour, shape) is a track, else 0
DIRECTION 1 when every asked object has a track of its colour that goes the way it was asked to,
          or stands still where nothing was asked, else 0
COUNT     1 when every asked colour is one track and there is nothing else, else 0
PATH, JITTER, FLICKER   means over the tracks of asked colours, as in tracks.py; None without any
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .metrics import Interval, bootstrap
from .scene import Ask
from .tracks import Track, read_clip

__all__ = ["ClipScore", "score_clip", "summarise_clips"]


@dataclass(frozen=True, slots=True)
class ClipScore:
    """One clip against its caption; `unreadable` is the share of its frames."""

    bind: int
    direction: int
    count: int
    path: float | None
    jitter: float | None
    flicker: float | None
    unreadable: float


def score_clip(frames: np.ndarray, ask: Ask) -> ClipScore:
    """Score [F, H, W, 3], float in 0..1 or uint8, against `parse_caption(caption)`."""
    reading = read_clip(frames)
    motions = ask.motions or (None,) * len(ask.objects)
    named = Counter((track.colour, track.shape) for track in reading.tracks)
    found = [_find(reading.tracks, colour) for colour, _ in ask.objects]
    right = [
        track is not None and track.direction == (motion or "still")
        for track, motion in zip(found, motions, strict=True)
    ]
    asked = Counter(colour for colour, _ in ask.objects)
    seen = [track for track in found if track is not None]
    return ClipScore(
        bind=int(not Counter(ask.objects) - named),
        direction=int(all(right)),
        count=int(asked == Counter(track.colour for track in reading.tracks)),
        path=_mean([track.path for track in seen]),
        jitter=_mean([track.jitter for track in seen]),
        flicker=_mean([track.flicker for track in seen]),
        unreadable=reading.unreadable / len(frames),
    )


def summarise_clips(scores: Sequence[ClipScore]) -> dict[str, Interval]:
    """Mean and interval of every metric over the clips that have it."""
    if not scores:
        raise ValueError("scores must hold at least one ClipScore, got none")
    summary = {}
    for name in asdict(scores[0]):
        values = [getattr(one, name) for one in scores if getattr(one, name) is not None]
        if values:
            summary[name.upper()] = bootstrap(values)
    return summary


def _find(tracks: Sequence[Track], colour: str) -> Track | None:
    """The track of this colour that is seen most."""
    return next((track for track in tracks if track.colour == colour), None)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
