"""Reads a clip of shapes back into tracks: what each object is, which way it goes and how steadily.

Every frame is read on its own; an object is then followed from frame to frame by its place. Lengths
are in units of the shorter side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from .reader import NAMES, FoundObject, Trace, trace
from .scene import MOTIONS

__all__ = ["ClipReading", "Track", "read_clip"]

MAX_STEP = 0.2  # between two frames; the fastest sampled clip has 0.04
OTHER_COLOUR = 0.1  # a candidate of another colour counts as so much further away
MIN_SEEN = 0.75  # of the frames; what is seen in fewer is no object
MIN_TRAVEL = 0.1  # of the fitted line; less is standing still, sampled clips have 0 or 0.3 and more
STRAIGHT = 2.0  # a direction must be so much more along one axis than along the other


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One object over a clip of F frames; names are those of most frames, None where undecided.

    positions: [F, 2], x right and y down, nan where it was not seen.
    colours: [F, 3], median RGB in 0..1, nan likewise.
    """

    colour: str | None
    shape: str | None
    positions: np.ndarray
    colours: np.ndarray

    @property
    def seen(self) -> float:
        """Share of the frames."""
        return float(np.isfinite(self.positions[:, 0]).mean())

    @property
    def travel(self) -> np.ndarray:
        """(dx, dy) from the first to the last frame of the straight line that fits best."""
        time = np.linspace(0, 1, len(self.positions))
        there = np.isfinite(self.positions[:, 0])
        return np.polyfit(time[there], self.positions[there], 1)[0]

    @property
    def direction(self) -> str | None:
        """A key of MOTIONS, "still", or None for a way between two directions."""
        along = {name: float(self.travel @ unit) for name, unit in MOTIONS.items()}
        first = max(along, key=along.get)
        if np.hypot(*self.travel) < MIN_TRAVEL:
            return "still"
        across = abs(self.travel[1 if MOTIONS[first][0] else 0])
        return first if along[first] >= STRAIGHT * across else None

    @property
    def path(self) -> float:
        """Length of the way through all places seen."""
        there = self.positions[np.isfinite(self.positions[:, 0])]
        return float(np.linalg.norm(np.diff(there, axis=0), axis=-1).sum())

    @property
    def jitter(self) -> float:
        """Root mean square of the second differences: 0 for a constant speed."""
        return _root_mean_square(np.diff(self.positions, 2, axis=0))

    @property
    def flicker(self) -> float:
        """Root mean square change of its colour from frame to frame."""
        return _root_mean_square(np.diff(self.colours, axis=0))


@dataclass(frozen=True, slots=True, eq=False)
class ClipReading:
    """The background of most frames, tracks (most seen first), and how many frames were unreadable.

    fragments: objects followed for too few frames to be a track.
    """

    background: str | None
    tracks: tuple[Track, ...]
    fragments: int
    unreadable: int


def read_clip(frames: np.ndarray | Sequence[np.ndarray]) -> ClipReading:
    """Read [F, H, W, 3] with three frames or more, float in 0..1 or uint8, RGB.

    Raises ValueError for anything else.
    """
    if len(frames) < 3:
        raise ValueError(f"a clip must have at least 3 frames, got {len(frames)}")
    traces = [trace(frame) for frame in frames]
    height, width = frames[0].shape[:2]
    unit = np.array([width, height]) / min(height, width)
    chains = _link([seen.reading.objects for seen in traces], unit)
    tracks = [_track(chain, traces, unit) for chain in chains]
    kept = [track for track in tracks if track.seen >= MIN_SEEN]
    return ClipReading(
        background=_most([seen.reading.background for seen in traces]),
        tracks=tuple(sorted(kept, key=lambda track: -track.seen)),
        fragments=len(tracks) - len(kept),
        unreadable=sum(seen.reading.unreadable is not None for seen in traces),
    )


def _link(frames: list[tuple[FoundObject, ...]], unit: np.ndarray) -> list[dict[int, int]]:
    """Chains {frame: index of its object}: each frame's objects continue the nearest chains."""
    chains: list[dict[int, int]] = []
    for t, objects in enumerate(frames):
        cost = np.full((len(chains), len(objects)), np.inf)
        for i, chain in enumerate(chains):
            last = max(chain)
            before = frames[last][chain[last]]
            for j, thing in enumerate(objects):
                way = np.hypot(*(unit * (thing.x - before.x, thing.y - before.y)))
                way += OTHER_COLOUR * (thing.colour != before.colour)
                cost[i, j] = way if way <= MAX_STEP * (t - last) else 1e6
        pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost), strict=True)]
        continued = {j: chains[i] for i, j in pairs if cost[i, j] < 1e6}
        for j in range(len(objects)):
            if j not in continued:
                chains.append(continued.setdefault(j, {}))
            continued[j][t] = j
    return chains


def _track(chain: dict[int, int], traces: list[Trace], unit: np.ndarray) -> Track:
    positions, colours = (np.full((len(traces), n), np.nan) for n in (2, 3))
    things = []
    for t, i in chain.items():
        thing = traces[t].reading.objects[i]
        things.append(thing)
        positions[t], colours[t] = _centre(traces[t], traces[t].regions[i])
    positions *= unit
    return Track(
        colour=_most([thing.colour for thing in things]),
        shape=_most([thing.shape for thing in things]),
        positions=positions,
        colours=colours,
    )


def _centre(seen: Trace, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (x, y) in fractions of width and height, and median colour, of one component.

    Each pixel counts by how far it lies from the background's colour to the object's, so that the
    centre moves with the object and not from pixel to pixel.
    """
    colour = np.median(seen.pixels[region], 0)
    plain = np.median(seen.pixels[seen.labels == NAMES.index(seen.reading.background)], 0)
    way = colour - plain
    share = np.clip((seen.pixels - plain) @ way / (way @ way), 0, 1)
    share = share * ndimage.binary_dilation(region, iterations=2)
    height, width = region.shape
    x = share.sum(0) @ (np.arange(width) + 0.5) / share.sum()
    y = share.sum(1) @ (np.arange(height) + 0.5) / share.sum()
    return np.array([x / width, y / height]), colour


def _most(names: list[str | None]) -> str | None:
    """The name that more than half agree on."""
    name, times = Counter(names).most_common(1)[0]
    return name if 2 * times > len(names) else None


def _root_mean_square(steps: np.ndarray) -> float:
    """Of the lengths of [n, d], without those that are nan; 0 when all are."""
    lengths = np.linalg.norm(steps, axis=-1)
    lengths = lengths[np.isfinite(lengths)]
    return float(np.sqrt((lengths**2).mean())) if lengths.size else 0.0
