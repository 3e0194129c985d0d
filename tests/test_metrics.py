import math
from dataclasses import replace

import numpy as np
import pytest

from foveate.pipelines.shapes.metrics import Score, paired_bootstrap, psnr, score, summarise
from foveate.pipelines.shapes.render import coverage, render
from foveate.pipelines.shapes.scene import (
    COLOURS,
    SceneObject,
    ShapesScene,
    parse_caption,
    sample_scene,
)

ASK = parse_caption("a red circle left of a blue square on a teal background")
CIRCLE = SceneObject("red", "circle", 0.27, 0.5, 0.2)
SQUARE = SceneObject("blue", "square", 0.73, 0.5, 0.2)


def picture(*objects, background="teal"):
    return render(ShapesScene(objects, background), 64, 64)


def paint(canvas, thing, colour):
    """Fill the shape of `thing` in `canvas` with another colour."""
    cover = coverage(thing, *canvas.shape[:2])[..., None]
    return canvas + cover * (np.divide(COLOURS[colour], 255) - canvas)


def test_the_picture_asked_for_is_perfect():
    got = score(picture(CIRCLE, SQUARE), ASK)
    assert got == Score(2, bind=1, count=1, rel=1, leak=0.0, extra=0, missing=0, unreadable=None)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_rendered_scenes_are_perfect(noise):
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = sample_scene(rng)
        drawn = render(scene, 64, 64) + noise * rng.standard_normal((64, 64, 3))
        got = score(np.clip(drawn, 0, 1), parse_caption(scene.caption))
        assert (got.bind, got.count) == (1, 1), scene.caption
        assert got.rel == (None if scene.relation is None else 1)
        # of thousands of noisy pixels one may fall nearest to another asked colour
        assert got.leak <= (0.01 if noise else 0), scene.caption


def test_wrong_colour():
    got = score(picture(replace(CIRCLE, colour="green"), SQUARE), ASK)
    assert (got.bind, got.count, got.rel) == (0, 0, 0)
    assert (got.extra, got.missing) == (1, 1)
    assert got.leak == 0  # green was not asked for


def test_swapped_colours_are_all_there_but_bound_wrongly():
    got = score(picture(replace(CIRCLE, colour="blue"), replace(SQUARE, colour="red")), ASK)
    assert (got.bind, got.count, got.rel) == (0, 1, 0)
    assert (got.extra, got.missing) == (0, 0)
    assert got.leak == 1


def test_wrong_shape():
    got = score(picture(replace(CIRCLE, shape="star"), SQUARE), ASK)
    assert (got.bind, got.count, got.rel) == (0, 1, 0)


def test_duplicate():
    twin = SceneObject("red", "circle", 0.5, 0.84, 0.12)
    got = score(picture(CIRCLE, SQUARE, twin), ASK)
    assert (got.bind, got.count, got.rel) == (1, 0, 1)
    assert (got.extra, got.missing) == (1, 0)
    assert 0 < got.leak < 0.4


def test_unasked_object():
    got = score(picture(CIRCLE, SQUARE, SceneObject("green", "star", 0.5, 0.84, 0.12)), ASK)
    assert (got.bind, got.count, got.extra, got.leak) == (1, 0, 1, 0)


def test_missing_object():
    got = score(picture(CIRCLE), ASK)
    assert (got.bind, got.count, got.rel) == (0, 0, 0)
    assert (got.extra, got.missing) == (0, 1)


def test_empty_picture_misses_everything():
    got = score(picture(), ASK)
    assert (got.bind, got.count, got.rel, got.leak, got.missing) == (0, 0, 0, 0, 2)


def test_reversed_relation():
    got = score(picture(replace(CIRCLE, x=SQUARE.x), replace(SQUARE, x=CIRCLE.x)), ASK)
    assert (got.bind, got.count, got.rel) == (1, 1, 0)


def test_no_relation_asked():
    assert score(picture(CIRCLE), parse_caption("a red circle on a teal background")).rel is None


def test_leak_grows_with_the_bleeding_area():
    leaks = []
    for radius in (0.0, 0.05, 0.1, 0.13):
        canvas = picture(CIRCLE, SQUARE)
        if radius:
            canvas = paint(canvas, replace(CIRCLE, radius=radius), "blue")
        leaks.append(score(canvas, ASK).leak)
    assert leaks[0] == 0
    assert leaks == sorted(leaks)
    assert np.diff(leaks).min() > 0


def test_leak_is_the_share_of_foreground():
    # a blue disc of a quarter of the circle's area; without the rims somewhat more than a quarter
    canvas = paint(picture(CIRCLE), replace(CIRCLE, radius=0.1), "blue")
    ask = parse_caption("a red circle and a blue square on a teal background")
    assert score(canvas, ask).leak == pytest.approx(0.29, abs=0.04)


def test_bleeding_of_an_unasked_colour_is_no_leak():
    canvas = paint(picture(CIRCLE, SQUARE), replace(CIRCLE, radius=0.08), "green")
    assert score(canvas, ASK).leak == 0


def test_an_undecided_object_of_the_asked_colour_is_its_region():
    canvas = picture(SQUARE)
    canvas[24:40, 6:12] = np.divide(COLOURS["red"], 255)  # a red bar
    got = score(canvas, ASK)
    assert (got.bind, got.count, got.leak) == (0, 1, 0)


def test_an_unreadable_picture_fails_what_is_asked():
    got = score(np.random.default_rng(0).random((64, 64, 3)), ASK)
    assert (got.bind, got.count, got.rel, got.leak) == (0, 0, 0, None)
    assert got.missing == 2
    assert "no plain background" in got.unreadable


def test_asked_twice_wants_two():
    ask = parse_caption("a red circle and a red circle on a teal background")
    twin = replace(CIRCLE, x=SQUARE.x)
    one, two = score(picture(CIRCLE), ask), score(picture(CIRCLE, twin), ask)
    assert (one.bind, one.count, one.missing) == (0, 0, 1)
    assert (two.bind, two.count, two.leak) == (1, 1, 0)


def test_psnr_against_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 20, 30, 3))
    assert psnr(a, b) == pytest.approx(-10 * math.log10(np.mean((a - b) ** 2)), rel=1e-5)
    assert psnr(np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)) == pytest.approx(20, rel=1e-5)
    assert psnr(a, a) == math.inf


def test_psnr_of_bytes_is_that_of_floats():
    a, b = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert psnr(a, b) == pytest.approx(psnr(a / 255, b / 255), rel=1e-5)


def test_psnr_refuses_other_shapes():
    with pytest.raises(ValueError, match="must have one shape"):
        psnr(np.zeros((16, 16, 3)), np.zeros((16, 32, 3)))
    with pytest.raises(ValueError, match="move channels last"):
        psnr(np.zeros((3, 16, 16)), np.zeros((3, 16, 16)))


def scores():
    good = Score(2, 1, 1, 1, 0.0, 0, 0, None)
    return [
        good,
        replace(good, bind=0, rel=0, leak=0.5),
        replace(good, bind=0, count=0, rel=0, leak=None, missing=2, unreadable="mush"),
        replace(good, num_objects=1, rel=None),
    ]


def test_summary_by_number_of_objects():
    got = summarise(scores(), samples=200)
    means = {name: (interval.mean, interval.num) for name, interval in got.items()}
    assert means["BIND"] == (0.5, 4)
    assert means["COUNT"] == (0.75, 4)
    assert means["REL"] == (pytest.approx(1 / 3), 3)
    assert means["LEAK"] == (pytest.approx(1 / 6), 3)
    assert means["UNREADABLE"] == (0.25, 4)
    assert means["BIND 1"] == (1, 1)
    assert means["BIND 2"] == (pytest.approx(1 / 3), 3)
    assert "REL 1" not in means
    assert "BIND 3" not in means
    assert all(interval.low <= interval.mean <= interval.high for interval in got.values())


def test_summary_of_nothing():
    with pytest.raises(ValueError, match="at least one Score"):
        summarise([])


def test_interval_matches_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    got = paired_bootstrap(values, np.zeros(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.02)
    assert got.high == pytest.approx(values.mean() + half, abs=0.02)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials = 300
    hits = 0
    for seed in range(trials):
        got = paired_bootstrap(rng.normal(0.3, 1, 80), np.zeros(80), samples=500, seed=seed)
        hits += got.low <= 0.3 <= got.high
    assert 0.90 <= hits / trials <= 0.985


def test_pairs_cancel_what_they_share():
    rng = np.random.default_rng(0)
    prompts = rng.normal(0, 5, 200)
    a = prompts + 0.2 + 0.1 * rng.standard_normal(200)
    b = prompts + 0.1 * rng.standard_normal(200)
    got = paired_bootstrap(a, b)
    assert got.low > 0
    assert got.high - got.low < 0.1
    reverse = paired_bootstrap(b, a)
    assert reverse.mean == pytest.approx(-got.mean)


def test_bootstrap_follows_its_seed():
    a, b = np.random.default_rng(0).random((2, 50))
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)
    assert paired_bootstrap(a, b) != paired_bootstrap(a, b, seed=1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "two equally long lists"),
        ([1.0, 2.0], [1.0], "two equally long lists"),
        ([[1.0]], [[1.0]], "two equally long lists"),
        ([1.0, math.nan], [1.0, 1.0], "must be finite"),
        ([math.inf, 1.0], [1.0, 1.0], "must be finite"),
    ],
)
def test_bad_pairs_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b)


def test_samples_are_checked():
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        paired_bootstrap([1.0], [0.0], samples=0)
