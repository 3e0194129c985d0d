"""Reads a picture of shapes back into objects, colours and positions, or says why it cannot.

Nearest palette colour, connected components, then the overlap with the four shapes drawn at the
component's centroid and area. Whatever wins without a margin is left undecided, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .render import STAR_INNER, STAR_POINTS, STRETCH, signed_distance
from .scene import BACKGROUNDS, COLOURS, SHAPES

__all__ = ["FoundObject", "Reading", "Trace", "read", "trace"]

PALETTE = {name: np.divide(rgb, 255) for name, rgb in (COLOURS | BACKGROUNDS).items()}
NAMES = tuple(PALETTE)
SIDE = 64  # pictures are averaged down or interpolated up until their shorter side is 64 to 127
MIN_SIDE = 16
MIN_AREA = 0.01  # of the squared shorter side; the smallest object sampled has 0.043
MIN_BACKGROUND = 0.45  # share of the picture; sampled scenes leave 0.7
MAX_SPREAD = 0.15  # root mean square distance of the background's pixels to its median
THICKNESS = 5  # pixels on that scale; thinner is a rim
MAX_COLOUR_DISTANCE = 0.19  # of a component's median to its palette colour
COLOUR_MARGIN = 0.1  # by which the nearest palette colour must win
# intersection over union with the shape that wins; the rounder, the more blends come near it
MIN_OVERLAP = {"circle": 0.89, "square": 0.84, "triangle": 0.8, "star": 0.8}
OVERLAP_MARGIN = 0.05  # by which that shape must win
SOFTNESS = (
    1.5  # pixels on that scale; corners of the drawn shapes are rounded as an autoencoder does
)
# area of each shape at circumradius 1
UNIT_AREA = {
    "circle": np.pi,
    "square": 2.0,
    "triangle": 3 * np.sqrt(3) / 4,
    "star": STAR_POINTS * STAR_INNER * np.sin(np.pi / STAR_POINTS),
}


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One component; `x`, `y`, `radius` in the units of `SceneObject`, names None where undecided.

    `colour` may be the name of a background that is not the picture's own.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    radius: float

    @property
    def is_clear(self) -> bool:
        return self.colour is not None and self.shape is not None


@dataclass(frozen=True, slots=True)
class Reading:
    """What is in a picture, largest object first; `unreadable` says why it is not to be trusted."""

    background: str | None
    objects: tuple[FoundObject, ...]
    unreadable: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A reading with its evidence: `labels` [h, w] index NAMES, `regions` [h, w] mask objects.

    pixels: [h, w, 3], the averaged-down picture that both are about.
    """

    reading: Reading
    pixels: np.ndarray
    labels: np.ndarray
    regions: tuple[np.ndarray, ...]


def read(picture: np.ndarray) -> Reading:
    """Read [H, W, 3], float in 0..1 or uint8, RGB; ValueError for anything else."""
    return trace(picture).reading


def trace(picture: np.ndarray) -> Trace:
    """As `read`, together with the pixels that the reading rests on (on the averaged-down grid)."""
    full = as_picture(picture)
    pixels, noise, factor = _rescale(full)
    labels = _nearest(pixels)
    counts = np.bincount(labels.ravel(), minlength=len(NAMES))
    background = NAMES[counts.argmax()]
    share = counts.max() / labels.size
    plain = labels == counts.argmax()
    reason = _why_no_background(pixels[plain], noise[plain], background, share)
    if reason is not None:
        return Trace(Reading(None, (), reason), pixels, labels, ())
    regions = _regions(pixels, labels, int(counts.argmax()))
    found = [_name(pixels, region) for region in regions]
    scale = (factor / full.shape[1], factor / full.shape[0], factor / min(full.shape[:2]))
    objects = tuple(
        FoundObject(colour, shape, *(float(v * s) for v, s in zip(place, scale, strict=True)))
        for colour, shape, place in found
    )
    if objects and not any(thing.is_clear for thing in objects):
        reason = f"none of the {len(objects)} components has a clear colour and shape"
    return Trace(Reading(background, objects, reason), pixels, labels, tuple(regions))


def as_picture(picture: np.ndarray) -> np.ndarray:
    """Check [H, W, 3], float in 0..1 or uint8, and return it as float32 in 0..1."""
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"picture must have shape [height, width, 3], got {list(pixels.shape)}; "
            "take one picture of a batch, move channels last, drop alpha"
        )
    if min(pixels.shape[:2]) < MIN_SIDE:
        raise ValueError(f"picture must be at least {MIN_SIDE} px a side, got {list(pixels.shape)}")
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"picture must be floating point or uint8, got {pixels.dtype}")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"picture must lie in 0..1, got {pixels.min():.3g}..{pixels.max():.3g}; "
            "map -1..1 by (x + 1) / 2, divide 0..255 by 255, clip what overshoots"
        )
    return pixels.astype(np.float32)


def _rescale(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Pixels [h, w, 3] on one scale, the variance lost on the way [h, w], old pixels per new."""
    side = min(pixels.shape[:2])
    if side < SIDE:
        zoom = -(-SIDE // side)
        finer = ndimage.zoom(pixels, (zoom, zoom, 1), order=1, mode="nearest", grid_mode=True)
        return finer, np.zeros(finer.shape[:2], np.float32), 1 / zoom
    factor = side // SIDE
    h, w = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return blocks.mean((1, 3)), blocks.var((1, 3)).sum(-1), factor


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """Index into NAMES of the nearest palette colour, [h, w]."""
    distances = [((pixels - rgb.astype(np.float32)) ** 2).sum(-1) for rgb in PALETTE.values()]
    return np.argmin(distances, 0)


def _why_no_background(
    pixels: np.ndarray, noise: np.ndarray, name: str, share: float
) -> str | None:
    if name not in BACKGROUNDS:
        return f"the most common colour is {name}, which is no background"
    if share < MIN_BACKGROUND:
        return f"no plain background: {name} fills only {share:.0%}"
    spread = np.sqrt((((pixels - np.median(pixels, 0)) ** 2).sum(-1) + noise).mean())
    if spread > MAX_SPREAD:
        return f"no plain background: {name} varies by {spread:.2f}"
    return None


def _regions(pixels: np.ndarray, labels: np.ndarray, background: int) -> list[np.ndarray]:
    """Masks of the components, largest first.

    An edge between two palette colours can be nearest to a third, so only the thick part of a
    colour (its core) seeds a component; any other pixel is background or the nearest core's colour.
    """
    core = np.full(labels.shape, background)
    for label in np.unique(labels[labels != background]):
        core[ndimage.binary_opening(labels == label, np.ones((THICKNESS, THICKNESS)))] = label
    if (core == background).all():
        return _components(_leftover(labels != background, []), min(labels.shape))
    place = ndimage.distance_transform_edt(
        core == background, return_distances=False, return_indices=True
    )
    owner = core[tuple(place)]
    plain = np.median(pixels[labels == background], 0)
    regions = []
    for label in np.unique(owner):
        colour = np.median(pixels[core == label], 0)
        middle, direction = (colour + plain) / 2, colour - plain
        mask = (owner == label) & ((pixels - middle) @ direction > 0)
        regions += _components(ndimage.binary_fill_holes(mask), min(labels.shape), core == label)
    regions += _components(_leftover(labels != background, regions), min(labels.shape))
    return sorted(regions, key=np.sum, reverse=True)


def _leftover(foreground: np.ndarray, regions: list[np.ndarray]) -> np.ndarray:
    """Foreground that no component explains and that is no mere rim."""
    if regions:
        foreground = foreground & ~ndimage.binary_dilation(np.any(regions, 0), iterations=2)
    return ndimage.binary_opening(foreground, np.ones((3, 3)))


def _components(mask: np.ndarray, side: int, core: np.ndarray | None = None) -> list[np.ndarray]:
    """Connected parts of `mask`, large enough and, where `core` is given, holding some of it."""
    parts, n = ndimage.label(mask)
    areas = np.bincount(parts.ravel(), minlength=n + 1)
    keep = [i for i in range(1, n + 1) if areas[i] >= MIN_AREA * side * side]
    if core is not None:
        keep = [i for i in keep if core[parts == i].any()]
    return [parts == i for i in keep]


def _name(
    pixels: np.ndarray, region: np.ndarray
) -> tuple[str | None, str | None, tuple[float, float, float]]:
    """Colour, shape and (x, y, radius in pixels) of one component."""
    colour = _colour(pixels[region])
    rows, columns = np.nonzero(region)
    x, y = columns.mean() + 0.5, rows.mean() + 0.5
    shape = _shape(region, x, y)
    guess = "circle" if shape is None else shape
    return colour, shape, (x, y, _circumradius(region, guess) / STRETCH[guess])


def _colour(pixels: np.ndarray) -> str | None:
    """Palette name of the median of [n, 3], None when too far from it or between two."""
    distances = np.linalg.norm(np.median(pixels, 0) - np.stack(list(PALETTE.values())), axis=-1)
    first, second = np.argsort(distances)[:2]
    if distances[first] > MAX_COLOUR_DISTANCE:
        return None
    if distances[second] - distances[first] < COLOUR_MARGIN:
        return None
    return NAMES[first]


def _shape(region: np.ndarray, x: float, y: float) -> str | None:
    """The shape of this area at (x, y) that overlaps `region` most, None when none clearly does."""
    reach = max(_circumradius(region, shape) for shape in SHAPES) + 2  # nothing is drawn beyond
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    window = region[top : int(y + reach) + 1, left : int(x + reach) + 1]
    rows, columns = np.mgrid[: window.shape[0], : window.shape[1]] + 0.5
    overlaps = {}
    for shape in SHAPES:
        radius = _circumradius(region, shape)
        distance = signed_distance(shape, columns + left - x, rows + top - y, radius)
        drawn = ndimage.gaussian_filter(np.clip(0.5 - distance, 0, 1), SOFTNESS) > 0.5
        common = (drawn & window).sum()
        overlaps[shape] = common / (drawn.sum() + region.sum() - common)
    first, second = sorted(overlaps, key=overlaps.get, reverse=True)[:2]
    if overlaps[first] < MIN_OVERLAP[first] or overlaps[first] - overlaps[second] < OVERLAP_MARGIN:
        return None
    return first


def _circumradius(region: np.ndarray, shape: str) -> float:
    """Circumradius in pixels of the `shape` that has the area of `region`."""
    return float(np.sqrt(region.sum() / UNIT_AREA[shape]))
