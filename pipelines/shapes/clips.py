"""Clips: scenes whose objects stand still or move along straight paths at a constant speed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .render import render
from .scene import MOTIONS, RADII, Ask, ShapesScene, sample_scene

__all__ = ["NUM_FRAMES", "ShapesClip", "render_clip", "sample_clip"]

NUM_FRAMES = 16
MIN_TRAVEL = 0.3  # from the first to the last frame, of the picture's width or height
STILL = 0.1  # share of the clips
MARGIN = 1.3  # least distance of a centre to the border over the radius


@dataclass(frozen=True, slots=True)
class ShapesClip:
    """`scene` is the first frame; `paths` the way (dx, dy) of each object until the last.

    Ways are in fractions of width and height.
    """

    scene: ShapesScene
    paths: tuple[tuple[float, float], ...]

    @property
    def ask(self) -> Ask:
        motions = tuple(_motion(*path) for path in self.paths)
        return replace(self.scene.ask, motions=motions if any(motions) else ())

    @property
    def caption(self) -> str:
        return self.ask.caption

    def at(self, progress: float) -> ShapesScene:
        """The scene at 0 (first frame) to 1 (last frame)."""
        moved = tuple(
            replace(thing, x=thing.x + progress * dx, y=thing.y + progress * dy)
            for thing, (dx, dy) in zip(self.scene.objects, self.paths, strict=True)
        )
        return replace(self.scene, objects=moved)

    def scenes(self, num_frames: int = NUM_FRAMES) -> list[ShapesScene]:
        return [self.at(float(progress)) for progress in np.linspace(0, 1, num_frames)]


def render_clip(
    clip: ShapesClip, height: int, width: int, num_frames: int = NUM_FRAMES
) -> np.ndarray:
    """The frames as float32 [number, height, width, 3] in 0..1."""
    return np.stack([render(scene, height, width) for scene in clip.scenes(num_frames)])


def sample_clip(rng: np.random.Generator) -> ShapesClip:
    """A random clip of one object that stays inside the picture."""
    scene = sample_scene(rng, 1)
    radius = rng.uniform(*RADII[2])
    low, high = MARGIN * radius, 1 - MARGIN * radius
    path = (0.0, 0.0)
    if rng.random() >= STILL:
        direction = list(MOTIONS.values())[rng.integers(len(MOTIONS))]
        travel = rng.uniform(MIN_TRAVEL, high - low)
        path = (direction[0] * travel, direction[1] * travel)
    x, y = (rng.uniform(max(low, low - way), min(high, high - way)) for way in path)
    thing = replace(scene.objects[0], x=float(x), y=float(y), radius=float(radius))
    return ShapesClip(replace(scene, objects=(thing,)), (path,))


def _motion(dx: float, dy: float) -> str | None:
    """The key of MOTIONS for a way along one axis, None for no way."""
    sign = (int(np.sign(dx)), int(np.sign(dy)))
    return next((name for name, direction in MOTIONS.items() if direction == sign), None)
