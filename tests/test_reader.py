from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from foveate.pipelines.shapes import reader
from foveate.pipelines.shapes.reader import read
from foveate.pipelines.shapes.render import STRETCH, coverage, render, signed_distance
from foveate.pipelines.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SceneObject,
    ShapesScene,
    relation_holds,
    sample_scene,
)

SIZES = [(64, 64), (128, 128), (256, 256), (512, 512)]
NOISE = [0.0, 0.05]
POSITION_TOLERANCE = 0.012  # of the shorter side: three quarters of a pixel at 64 px
RADIUS_TOLERANCE = 0.012


def colour(name):
    return np.divide((COLOURS | BACKGROUNDS)[name], 255)


def plain(name, height=64, width=64):
    return np.tile(colour(name), (height, width, 1))


def painted(background, cover, inside):
    """`inside`, one colour or a picture, where `cover` [h, w] is 1, on a plain background."""
    picture = plain(background, *cover.shape)
    return picture + cover[..., None] * (inside - picture)


def one(colour_name, shape, radius=0.22, background="gray", size=(64, 64)):
    scene = ShapesScene((SceneObject(colour_name, shape, 0.5, 0.5, radius),), background)
    return render(scene, *size)


def noisy(picture, std, rng):
    return np.clip(picture + std * rng.standard_normal(picture.shape), 0, 1)


def by_pair(things):
    return sorted(things, key=lambda thing: (thing.colour or "", thing.shape or ""))


def assert_reads_back(scene, reading, size):
    message = f"{scene.caption}: {reading}"
    assert reading.unreadable is None, message
    assert reading.background == scene.background, message
    drawn, found = by_pair(scene.objects), by_pair(reading.objects)
    assert [(a.colour, a.shape) for a in drawn] == [(a.colour, a.shape) for a in found], message
    pitch = np.divide(size[::-1], min(size))  # x and y in units of the shorter side
    for a, b in zip(drawn, found, strict=True):
        assert np.abs(np.subtract((a.x, a.y), (b.x, b.y)) * pitch).max() < POSITION_TOLERANCE
        assert abs(a.radius - b.radius) < RADIUS_TOLERANCE, message
    if scene.relation is not None:
        place = {thing.colour: (thing.x, thing.y) for thing in found}
        first, second = scene.objects[:2]
        assert relation_holds(scene.relation, place[first.colour], place[second.colour]), message


def assert_reads_all(number, size, noise):
    rng = np.random.default_rng([7, *size])
    for _ in range(number):
        scene = sample_scene(rng)
        assert_reads_back(scene, read(noisy(render(scene, *size), noise, rng)), size)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize(
    ("size", "number"),
    [
        ((48, 48), 50),
        ((64, 64), 200),
        ((128, 128), 100),
        ((256, 256), 50),
        ((512, 512), 25),
        ((64, 160), 50),
        ((200, 96), 40),
        ((100, 333), 25),
    ],
    ids=str,
)
def test_rendered_scenes_are_read_back(size, number, noise):
    assert_reads_all(number, size, noise)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_thousand_scenes_are_read_back(size, noise):
    assert_reads_all(2000, size, noise)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_colour_on_every_background(shape, background):
    for name in COLOURS:
        (found,) = read(one(name, shape, 0.15, background)).objects
        assert (found.colour, found.shape) == (name, shape)


def test_rims_of_third_colours_are_no_objects():
    # a soft edge from blue to pink passes through purple over several pixels
    picture = ndimage.gaussian_filter(one("blue", "circle", background="pink"), (1.5, 1.5, 0))
    labels = reader.trace(picture).labels
    assert (labels == reader.NAMES.index("purple")).sum() > 20
    assert [(a.colour, a.shape) for a in read(picture).objects] == [("blue", "circle")]


@pytest.mark.parametrize("offset", [(0.08, 0.08, 0.08), (-0.08, 0.08, 0), (0, -0.08, 0.08)])
def test_colours_may_be_off(offset):
    rng = np.random.default_rng(1)
    for _ in range(20):
        scene = sample_scene(rng)
        reading = read(np.clip(render(scene, 64, 64) + offset, 0, 1))
        assert_reads_back(scene, reading, (64, 64))


def test_soft_edges_are_read():
    rng = np.random.default_rng(2)
    for _ in range(30):
        scene = sample_scene(rng)
        picture = ndimage.gaussian_filter(render(scene, 64, 64), (1, 1, 0))
        got = [(a.colour, a.shape) for a in by_pair(read(picture).objects)]
        assert got == [(a.colour, a.shape) for a in by_pair(scene.objects)]


def test_bytes_floats_and_float64_read_alike():
    picture = one("yellow", "star")
    wanted = read(picture)
    assert read(picture.astype(np.float64)) == wanted
    (found,) = read(np.round(picture * 255).astype(np.uint8)).objects
    assert (found.colour, found.shape) == ("yellow", "star")


def test_objects_come_largest_first():
    small, large = (
        SceneObject("red", "circle", 0.25, 0.3, 0.14),
        SceneObject("blue", "circle", 0.7, 0.6, 0.22),
    )
    reading = read(render(ShapesScene((small, large), "teal"), 64, 64))
    assert [thing.colour for thing in reading.objects] == ["blue", "red"]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_is_readable_and_empty(background):
    reading = read(plain(background))
    assert (reading.background, reading.objects, reading.unreadable) == (background, (), None)


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize("kind", ["uniform", "gaussian", "smooth"])
def test_noise_is_unreadable(kind, side):
    rng = np.random.default_rng(3)
    for _ in range(10):
        x = rng.standard_normal((side, side, 3))
        if kind == "smooth":
            x = ndimage.gaussian_filter(x, (side / 16, side / 16, 0))
            x /= x.std()
        picture = rng.random(x.shape) if kind == "uniform" else np.clip(0.51 + 0.25 * x, 0, 1)
        assert read(picture).unreadable is not None


def test_a_foreground_colour_is_no_background():
    assert "white, which is no background" in read(plain("white")).unreadable


def test_no_plain_background():
    stripes = np.concatenate([plain(name, 16, 64) for name in ("teal", "pink", "gray", "teal")])
    stripes[:5] = colour("red")
    assert "no plain background" in read(stripes).unreadable


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_half_blended_shapes_are_undecided(first, second):
    y, x = (np.mgrid[:64, :64] + 0.5) / 64 - 0.5
    radius = 0.25
    distance = sum(signed_distance(s, x, y, STRETCH[s] * radius) for s in (first, second)) / 2
    (found,) = read(painted("gray", np.clip(0.5 - 64 * distance, 0, 1), colour("red"))).objects
    assert found.shape == (first if first == second else None)
    assert found.colour == "red"


@pytest.mark.parametrize("shape", ["square", "triangle", "star"])
def test_turned_shapes_are_undecided(shape):
    picture = one("red", shape, 0.25)
    turned = picture[::-1]
    if shape == "square":
        y, x = np.abs((np.mgrid[:64, :64] + 0.5) / 64 - 0.5)
        turned = painted("gray", (x + y < 0.3).astype(float), colour("red"))
    assert read(picture).unreadable is None
    reading = read(turned)
    assert [(a.colour, a.shape) for a in reading.objects] == [("red", None)]
    assert "none of the 1 components" in reading.unreadable


def test_half_and_half_object_is_undecided():
    inside = np.concatenate([plain("red", 64, 32), plain("blue", 64, 32)], 1)
    cover = coverage(SceneObject("red", "circle", 0.5, 0.5, 0.25), 64, 64)
    reading = read(painted("gray", cover, inside))
    assert {(a.colour, a.shape) for a in reading.objects} == {("red", None), ("blue", None)}
    assert reading.unreadable is not None


def test_colour_between_two_is_undecided():
    cover = coverage(SceneObject("red", "square", 0.5, 0.5, 0.25), 64, 64)
    reading = read(painted("teal", cover, (colour("red") + colour("orange")) / 2))
    assert [(a.colour, a.shape) for a in reading.objects] == [(None, "square")]
    assert reading.unreadable is not None


def test_a_clear_object_is_read_beside_a_mushy_one():
    picture = render(
        ShapesScene((SceneObject("green", "triangle", 0.7, 0.7, 0.2),), "pink"), 64, 64
    )
    y, x = np.mgrid[:64, :64]
    mush = (np.abs(y - 14) < 5) & (np.abs(x - 20) < 16)  # a bar: none of the shapes
    picture[mush] = colour("blue")
    reading = read(picture)
    assert reading.unreadable is None
    assert {(a.colour, a.shape) for a in reading.objects} == {
        ("green", "triangle"),
        ("blue", None),
    }


def test_specks_are_no_objects():
    picture = one("red", "circle")
    picture[4:7, 4:7] = colour("blue")
    assert len(read(picture).objects) == 1


def test_an_object_of_another_background_colour_is_named():
    cover = coverage(SceneObject("red", "circle", 0.5, 0.5, 0.25), 64, 64)
    (found,) = read(painted("gray", cover, colour("pink"))).objects
    assert (found.colour, found.shape) == ("pink", "circle")


def test_mirrored_picture_mirrors_the_reading():
    scene = sample_scene(np.random.default_rng(4), 3)
    mirrored = replace(
        scene, objects=tuple(replace(thing, x=1 - thing.x) for thing in scene.objects)
    )
    mirrored = replace(mirrored, relation=None)
    assert_reads_back(mirrored, read(render(scene, 64, 64)[:, ::-1]), (64, 64))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 64)), "must have shape"),
        (np.zeros((64, 64, 4)), "drop alpha"),
        (np.zeros((3, 64, 64)), "move channels last"),
        (np.zeros((1, 64, 64, 3)), "one picture of a batch"),
        (np.zeros((8, 64, 3)), "at least 16 px"),
        (np.zeros((64, 64, 3), np.int64), "floating point or uint8, got int64"),
        (np.full((64, 64, 3), 255.0), "divide 0..255 by 255"),
        (np.full((64, 64, 3), -0.5), "map -1..1"),
        (np.full((64, 64, 3), np.nan), "must lie in 0..1"),
    ],
)
def test_bad_pictures_are_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        read(picture)
