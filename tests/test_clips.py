"""Clips of moving shapes, and their reading back into tracks: exact on what was rendered."""

import numpy as np
import pytest

from foveate.pipelines.shapes.clip_metrics import score_clip, summarise_clips
from foveate.pipelines.shapes.clips import (
    MIN_TRAVEL,
    NUM_FRAMES,
    ShapesClip,
    render_clip,
    sample_clip,
)
from foveate.pipelines.shapes.render import coverage
from foveate.pipelines.shapes.scene import MOTIONS, Ask, SceneObject, ShapesScene, parse_caption
from foveate.pipelines.shapes.tracks import read_clip

CLIPS = [sample_clip(np.random.default_rng(seed)) for seed in range(200)]


def clip_of(*paths, places=((0.25, 0.25), (0.7, 0.7)), radius=0.16):
    """A red circle, and a blue square where there is a second path."""
    kinds = (("red", "circle"), ("blue", "square"))
    objects = tuple(
        SceneObject(*kind, *place, radius)
        for kind, place, _ in zip(kinds, places, paths, strict=False)
    )
    return ShapesClip(ShapesScene(objects, "gray"), paths)


def check(clip, side, noise=0.0, seed=0):
    """The reading of a rendered clip says what the clip is."""
    frames = render_clip(clip, side, side)
    frames = frames + noise * np.random.default_rng(seed).standard_normal(frames.shape)
    reading = read_clip(frames.clip(0, 1).astype(np.float32))
    assert reading.background == clip.scene.background
    assert reading.unreadable == reading.fragments == 0
    motions = clip.ask.motions or (None,) * len(clip.paths)
    assert len(reading.tracks) == len(clip.paths)
    for thing, path, motion in zip(clip.scene.objects, clip.paths, motions, strict=True):
        track = next(one for one in reading.tracks if one.colour == thing.colour)
        assert (track.shape, track.seen) == (thing.shape, 1)
        assert track.direction == (motion or "still")
        index = clip.scene.objects.index(thing)
        places = [(scene.objects[index].x, scene.objects[index].y) for scene in clip.scenes()]
        np.testing.assert_allclose(track.positions, places, atol=0.004)
        np.testing.assert_allclose(track.travel, path, atol=0.004)
        assert abs(track.path - np.hypot(*path)) < 0.002 + noise
        assert track.jitter < 0.003 + 0.04 * noise
        assert track.flicker < 0.002 + 0.5 * noise


def test_sampled_clips_keep_their_promises():
    assert {clip.ask.motions for clip in CLIPS} == {(), *((motion,) for motion in MOTIONS)}
    for clip in CLIPS:
        path = clip.paths[0]
        assert path == (0, 0) or (0 in path and np.hypot(*path) >= MIN_TRAVEL)
        for scene in (clip.at(0), clip.at(1)):
            alone = scene.objects[0]
            assert 1.25 * alone.radius < min(alone.x, alone.y, 1 - alone.x, 1 - alone.y)


def test_captions_round_trip():
    for clip in CLIPS:
        assert parse_caption(clip.caption) == clip.ask
    ask = clip_of((0.4, 0.0), (0.0, 0.0)).ask
    assert ask.caption == "a red circle moving right and a blue square on a gray background"
    assert parse_caption(ask.caption) == ask
    assert clip_of((0.0, 0.0)).ask == Ask((("red", "circle"),), None, "gray")


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle moving on a teal background",
        "a red circle moving sideways on a teal background",
        "a red circle walking left on a teal background",
        "a red circle moving left left of a blue square on a teal background",
    ],
)
def test_what_no_clip_is_called_is_refused(caption):
    with pytest.raises(ValueError, match="motions left, right, up, down"):
        parse_caption(caption)


def test_frames_are_those_of_the_scenes_between():
    clip = clip_of((0.4, -0.1))
    frames = render_clip(clip, 48, 64, num_frames=5)
    assert frames.shape == (5, 48, 64, 3)
    thing = clip.at(0.5).objects[0]
    assert (thing.x, thing.y) == pytest.approx((0.45, 0.2))
    shown = coverage(thing, 48, 64)[..., None]
    grey, red = frames[0, -1, -1], frames[0, 12, 16]
    np.testing.assert_allclose(frames[2], grey + shown * (red - grey), atol=1e-6)


@pytest.mark.parametrize("side", [64, 128])
def test_what_is_rendered_is_read_back(side):
    for clip in CLIPS[: 12 if side == 64 else 4]:
        check(clip, side)


@pytest.mark.slow
def test_two_thousand_clips_are_read_back():
    for seed in range(2_000):
        check(sample_clip(np.random.default_rng((1, seed))), 64, 0.05 * (seed % 2), seed)


def test_two_objects_are_followed_past_each_other():
    check(clip_of((0.5, 0.0), (-0.45, 0.0), places=((0.25, 0.25), (0.75, 0.72))), 64)
    check(clip_of((0.0, 0.5), (0.0, 0.0), places=((0.25, 0.25), (0.72, 0.5))), 64)


def test_jitter_flicker_and_a_wrong_way_are_seen():
    rng = np.random.default_rng(0)
    clip = clip_of((0.5, 0.0))
    smooth = read_clip(render_clip(clip, 64, 64)).tracks[0]
    shaken = ShapesClip(clip.scene, ((0.5, 0.0),))
    shifts = rng.normal(0, 0.02, (NUM_FRAMES, 2))
    frames = []
    for scene, (dx, dy) in zip(shaken.scenes(), shifts, strict=True):
        one = scene.objects[0]
        moved = SceneObject(one.colour, one.shape, one.x + dx, one.y + dy, one.radius)
        frames.append(render_clip(ShapesClip(ShapesScene((moved,), "gray"), ((0, 0),)), 64, 64)[0])
    track = read_clip(frames).tracks[0]
    expected = np.sqrt((np.linalg.norm(np.diff(shifts, 2, axis=0), axis=-1) ** 2).mean())
    assert track.jitter == pytest.approx(expected, rel=0.1)
    assert track.jitter > 5 * smooth.jitter
    assert track.path > smooth.path
    assert track.direction == "right"

    dim = (
        render_clip(clip, 64, 64) * np.where(np.arange(NUM_FRAMES) % 2, 1, 0.9)[:, None, None, None]
    )
    assert read_clip(dim).tracks[0].flicker > 0.05
    askew = read_clip(render_clip(clip_of((0.3, 0.25)), 64, 64)).tracks[0]
    assert askew.direction is None


def test_scores_say_what_is_wrong():
    clip = clip_of((0.4, 0.0))
    frames = render_clip(clip, 64, 64)
    good = score_clip(frames, clip.ask)
    assert (good.bind, good.direction, good.count, good.unreadable) == (1, 1, 1, 0)
    assert score_clip(frames[::-1], clip.ask).direction == 0
    assert score_clip(frames, parse_caption("a red circle on a gray background")).direction == 0
    wrong = parse_caption("a blue square moving right on a gray background")
    bad = score_clip(frames, wrong)
    assert (bad.bind, bad.direction, bad.count, bad.path) == (0, 0, 0, None)
    mush = np.random.default_rng(0).random(frames.shape).astype(np.float32)
    lost = score_clip(mush, clip.ask)
    assert (lost.direction, lost.unreadable, lost.jitter) == (0, 1, None)
    flash = frames.copy()
    flash[4:] = frames[0, -1, -1]  # gone after a quarter of the clip
    assert score_clip(flash, clip.ask).count == 0
    summary = summarise_clips([good, bad])
    assert summary["DIRECTION"].mean == 0.5
    assert summary["PATH"].num == 1


def test_a_clip_needs_three_frames():
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        read_clip(render_clip(CLIPS[0], 64, 64, num_frames=2))
