import numpy as np
import pytest

from foveate.pipelines.shapes.render import coverage, render, signed_distance
from foveate.pipelines.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    SHAPES,
    Ask,
    SceneObject,
    ShapesScene,
    parse_caption,
    relation_holds,
    sample_scene,
)

SCENES = [sample_scene(np.random.default_rng(seed)) for seed in range(300)]


def test_palette_is_far_apart():
    palette = np.array(list((COLOURS | BACKGROUNDS).values()), float)
    distances = np.linalg.norm(palette[:, None] - palette, axis=-1)
    assert distances[~np.eye(len(palette), dtype=bool)].min() >= 98


def test_sampled_scenes_keep_their_promises():
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3}
    for scene in SCENES:
        assert len({thing.colour for thing in scene.objects}) == len(scene.objects)
        for thing in scene.objects:
            low, high = RADII[len(scene.objects)]
            assert low <= thing.radius <= high
            assert 1.25 * thing.radius < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
        if scene.relation is not None:
            first, second = scene.objects[:2]
            assert relation_holds(scene.relation, (first.x, first.y), (second.x, second.y))


@pytest.mark.parametrize("size", [(64, 64), (48, 120)])
def test_objects_never_touch(size):
    for scene in SCENES[:100]:
        covers = sum(coverage(thing, *size) > 0 for thing in scene.objects)
        assert covers.max() == 1


def test_sampling_follows_the_seed():
    def draw(seed):
        return sample_scene(np.random.default_rng(seed))

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("num_objects", [1, 2, 3])
def test_number_of_objects_is_honoured(num_objects):
    assert len(sample_scene(np.random.default_rng(0), num_objects).objects) == num_objects


def test_number_of_objects_is_checked():
    with pytest.raises(ValueError, match="num_objects must be 1, 2 or 3, got 4"):
        sample_scene(np.random.default_rng(0), 4)


def test_captions_round_trip():
    for scene in SCENES:
        assert parse_caption(scene.caption) == scene.ask


def test_caption_is_the_documented_sentence():
    pairs = (("red", "circle"), ("blue", "square"), ("green", "star"))
    ask = Ask(pairs, "left of", "teal")
    sentence = "a red circle left of a blue square and a green star on a teal background"
    assert ask.caption == sentence
    assert parse_caption(f"  {sentence.upper()} ") == ask


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red circle",
        "a red circle on a mauve background",
        "a mauve circle on a teal background",
        "a red hexagon on a teal background",
        "red circle on a teal background",
        "a red circle near a blue square on a teal background",
        "a red circle left of on a teal background",
        "a red circle and a blue square left of a green star on a teal background",
        "a red star and a blue star and a green star and a white star on a teal background",
    ],
)
def test_other_sentences_are_refused(caption):
    with pytest.raises(ValueError, match="is not of the form"):
        parse_caption(caption)


@pytest.mark.parametrize("shape", SHAPES)
def test_drawing_matches_heavy_supersampling(shape):
    scene = ShapesScene((SceneObject("red", shape, 0.45, 0.55, 0.25),), "teal")
    fine = render(scene, 64 * 16, 96 * 16).reshape(64, 16, 96, 16, 3).mean((1, 3))
    error = np.abs(render(scene, 64, 96) - fine)
    assert error.mean() < 1e-3
    assert error.max() < 0.3  # at most part of one pixel at a tip


@pytest.mark.parametrize(("shape", "share"), [("circle", np.pi / 16), ("square", 1.22**2 / 8)])
def test_drawn_area(shape, share):
    cover = coverage(SceneObject("red", shape, 0.5, 0.5, 0.25), 128, 128)
    assert cover.sum() / 128**2 == pytest.approx(share, rel=2e-3)


def test_colours_are_exact_inside_and_outside():
    picture = render(ShapesScene((SceneObject("red", "circle", 0.5, 0.5, 0.25),), "pink"), 65, 65)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[32, 32], np.divide(COLOURS["red"], 255), atol=1e-6)
    np.testing.assert_allclose(picture[0, 0], np.divide(BACKGROUNDS["pink"], 255), atol=1e-6)


def test_bad_size_and_shape():
    with pytest.raises(ValueError, match="height and width must be >= 1, got 0 x 64"):
        render(SCENES[0], 0, 64)
    with pytest.raises(ValueError, match="unknown shape 'hexagon'"):
        signed_distance("hexagon", np.zeros(1), np.zeros(1), 1.0)


@pytest.mark.parametrize(
    ("relation", "second", "holds"),
    [
        ("left of", (0.6, 0.5), True),
        ("left of", (0.4, 0.5), False),
        ("right of", (0.4, 0.5), True),
        ("right of", (0.6, 0.5), False),
        ("above", (0.5, 0.6), True),
        ("above", (0.5, 0.4), False),
        ("below", (0.5, 0.4), True),
        ("below", (0.5, 0.6), False),
    ],
)
def test_relations_have_y_pointing_down(relation, second, holds):
    assert relation_holds(relation, (0.5, 0.5), second) is holds
