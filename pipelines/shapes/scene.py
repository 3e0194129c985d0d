"""Scenes of one to three coloured shapes on a plain background, and captions that describe them.

A scene knows no pixels: positions are fractions of width and height, radii of the shorter side.
The caption grammar is closed, so that a caption can be read back into what it asks for:

    a <colour> <shape> [<relation> a <colour> <shape>] [and a <colour> <shape>]
    on a <background> background

In a clip objects may move: `a red circle moving right and a blue square on a teal background`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MOTIONS",
    "RELATIONS",
    "SHAPES",
    "Ask",
    "SceneObject",
    "ShapesScene",
    "parse_caption",
    "relation_holds",
    "sample_scene",
]

# rgb in 0..255; every pair is at least 98 apart, so that nearest-colour reading is safe
COLOURS = {
    "red": (220, 30, 40),
    "green": (30, 150, 50),
    "blue": (40, 70, 230),
    "yellow": (250, 225, 40),
    "orange": (250, 130, 10),
    "purple": (140, 40, 180),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
BACKGROUNDS = {
    "teal": (60, 180, 190),
    "gray": (130, 130, 130),
    "pink": (250, 165, 200),
    "brown": (125, 75, 40),
}
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = ("left of", "right of", "above", "below")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x right, y down
RADII = {1: (0.18, 0.28), 2: (0.16, 0.22), 3: (0.14, 0.17)}  # by number of objects


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape: `x`, `y` centre as fractions of width and height, `radius` of the shorter side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got {self.colour!r}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caption asks for: (colour, shape) pairs, the relation of the first two, background.

    motions: of a clip, a key of MOTIONS for each object, None where it stands still; empty when
        nothing moves.
    """

    objects: tuple[tuple[str, str], ...]
    relation: str | None
    background: str
    motions: tuple[str | None, ...] = ()

    @property
    def caption(self) -> str:
        names = [f"a {colour} {shape}" for colour, shape in self.objects]
        for i, motion in enumerate(self.motions):
            names[i] += "" if motion is None else f" moving {motion}"
        head = names.pop(0)
        if self.relation is not None:
            head = f"{head} {self.relation} {names.pop(0)}"
        return f"{' and '.join([head, *names])} on a {self.background} background"


@dataclass(frozen=True, slots=True)
class ShapesScene:
    """Objects on a background; `relation` holds between the first two objects, or is None."""

    objects: tuple[SceneObject, ...]
    background: str
    relation: str | None = None

    @property
    def ask(self) -> Ask:
        pairs = tuple((thing.colour, thing.shape) for thing in self.objects)
        return Ask(pairs, self.relation, self.background)

    @property
    def caption(self) -> str:
        return self.ask.caption


def relation_holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether the point `first` (x right, y down) stands in `relation` to `second`."""
    (x0, y0), (x1, y1) = first, second
    return {"left of": x0 < x1, "right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}[relation]


def sample_scene(rng: np.random.Generator, num_objects: int | None = None) -> ShapesScene:
    """A random scene: objects apart from each other and inside the picture, colours distinct."""
    n = int(rng.integers(1, 4)) if num_objects is None else num_objects
    if n not in RADII:
        raise ValueError(f"num_objects must be 1, 2 or 3, got {num_objects}")
    colours = rng.permutation(list(COLOURS))[:n]
    shapes = rng.choice(SHAPES, n)
    places = _places(rng, n)
    objects = tuple(
        SceneObject(str(c), str(s), *place)
        for c, s, place in zip(colours, shapes, places, strict=True)
    )
    background = str(rng.choice(list(BACKGROUNDS)))
    related = n > 1 and rng.random() < 0.7
    return ShapesScene(objects, background, _relation(objects) if related else None)


def parse_caption(caption: str) -> Ask:
    """Read a caption of the grammar above; ValueError when it is not one."""
    body, _, background = caption.strip().lower().partition(" on a ")
    background = background.removesuffix(" background")
    relation = next((r for r in RELATIONS if f" {r} " in body), None)
    phrases = re.split(" and |" + "|".join(f" {r} " for r in RELATIONS), body)
    words = [phrase.split() for phrase in phrases]
    ask = Ask(
        tuple((colour, shape) for _, colour, shape, *_ in words)
        if min(map(len, words)) > 2
        else (),
        relation,
        background,
        tuple(phrase[-1] if len(phrase) > 3 else None for phrase in words),
    )
    if not any(ask.motions):
        ask = replace(ask, motions=())
    if not _is_known(ask) or ask.caption != caption.strip().lower():
        raise ValueError(
            f"caption {caption!r} is not of the form "
            "'a red circle left of a blue square and a green star on a teal background'; "
            "or 'a red circle moving right and a blue square on a teal background'; "
            f"colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; "
            f"backgrounds {', '.join(BACKGROUNDS)}; relations {', '.join(RELATIONS)}; "
            f"motions {', '.join(MOTIONS)}"
        )
    return ask


def _is_known(ask: Ask) -> bool:
    pairs_known = all(colour in COLOURS and shape in SHAPES for colour, shape in ask.objects)
    motions_known = all(motion is None or motion in MOTIONS for motion in ask.motions)
    is_one_kind = ask.relation is None or not ask.motions
    count_known = len(ask.objects) in RADII and len(ask.motions) in (0, len(ask.objects))
    return (
        pairs_known
        and motions_known
        and is_one_kind
        and count_known
        and ask.background in BACKGROUNDS
    )


def _places(rng: np.random.Generator, n: int) -> list[tuple[float, float, float]]:
    """n (x, y, radius) with a gap between them, by rejection."""
    low, high = RADII[n]
    while True:
        radii = rng.uniform(low, high, n)
        xy = rng.uniform(1.3 * radii, 1 - 1.3 * radii, (2, n)).T
        gaps = [
            np.hypot(*(xy[i] - xy[j])) - 1.35 * (radii[i] + radii[j])
            for i in range(n)
            for j in range(i)
        ]
        if all(gap > 0 for gap in gaps):
            return [(float(x), float(y), float(r)) for (x, y), r in zip(xy, radii, strict=True)]


def _relation(objects: tuple[SceneObject, ...]) -> str:
    """The relation of the first to the second object along the axis that separates them most."""
    first, second = objects[:2]
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"
