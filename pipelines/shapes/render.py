"""Draws a scene at any size by signed distance, anti-aliased over one pixel."""

from __future__ import annotations

import numpy as np

from .scene import BACKGROUNDS, COLOURS, SceneObject, ShapesScene

__all__ = ["coverage", "render", "signed_distance"]

STAR_POINTS = 5
STAR_INNER = 0.48  # inner over outer radius of the star
# circumradius over `SceneObject.radius`: shapes of one radius look equally large
STRETCH = {"circle": 1.0, "square": 1.22, "triangle": 1.25, "star": 1.25}


def render(scene: ShapesScene, height: int, width: int) -> np.ndarray:
    """The scene as float32 [height, width, 3] in 0..1."""
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be >= 1, got {height} x {width}")
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = np.divide(BACKGROUNDS[scene.background], 255)
    for thing in scene.objects:
        alpha = coverage(thing, height, width)[..., None]
        picture += alpha * (np.divide(COLOURS[thing.colour], 255, dtype=np.float32) - picture)
    return picture


def coverage(thing: SceneObject, height: int, width: int) -> np.ndarray:
    """Share of each pixel that `thing` covers, float32 [height, width]."""
    side = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    x, y = (x - thing.x * width) / side, (y - thing.y * height) / side  # units of the shorter side
    distance = signed_distance(thing.shape, x, y, STRETCH[thing.shape] * thing.radius)
    return np.clip(0.5 - distance * side, 0, 1)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the outline of a shape around 0, negative inside; y points down.

    `radius` is the circumradius, in the units of x and y.
    """
    if shape not in STRETCH:
        raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(STRETCH)}")
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius / np.sqrt(2)
    ring = _ring(3 if shape == "triangle" else 2 * STAR_POINTS, radius)
    if shape == "star":
        ring[1::2] *= STAR_INNER
    return _polygon(x, y, ring)


def _ring(n: int, radius: float) -> np.ndarray:
    """n points on a circle, the first on top, [n, 2]."""
    angle = 2 * np.pi * np.arange(n) / n
    return radius * np.stack([np.sin(angle), -np.cos(angle)], -1)


def _polygon(x: np.ndarray, y: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Exact signed distance to a closed polygon: nearest edge, sign by the even-odd rule."""
    distance = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, 0), strict=True):
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - t * ex, y - ay - t * ey))
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (x < ax + (y - ay) * ex / (ey if ey != 0 else 1))
    return np.where(inside, -distance, distance)
