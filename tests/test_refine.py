"""Rows refined by trying: allowed, better, in no more runs than asked for, for one schedule."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from broadcast_pipelines import Latents
from foveate.attn_processors.broadcast import CalibratedPlan, FractionPlan, broadcast
from foveate.attn_processors.broadcast.schedule import Schedule
from foveate.attn_processors.fingerprint import fingerprint
from foveate.pipelines.broadcast import refine as refining
from foveate.pipelines.broadcast.calibrate import calibrate, measure
from foveate.pipelines.broadcast.refine import refine
from foveate.pipelines.broadcast.runs import Runs, psnr

STEPS = 10


@pytest.fixture(scope="module")
def pixart():
    return Latents("pixart")


@pytest.fixture(scope="module")
def runs(pixart):
    prompts = ("a cat", "a dog")
    return Runs(pipe=pixart.pipe, prompts=prompts, steps=STEPS, call=pixart.arguments)


@pytest.fixture(scope="module")
def plan(pixart, runs):
    return CalibratedPlan(
        curves=measure(runs),
        share=0.7,
        model="PixArtTransformer2DModel",
        fingerprint=fingerprint(pixart.model),
    )


def quality(plan, runs, exact):
    with broadcast(runs.pipe, plan):
        return psnr(runs.pictures(), exact).mean()


def counted(monkeypatch):
    """Every drawing of pictures, by a list."""
    drawn, pictures = [], Runs.pictures
    monkeypatch.setattr(Runs, "pictures", lambda own: drawn.append(own) or pictures(own))
    return drawn


def test_refined_rows_are_better_than_those_they_begin_with(plan, runs):
    exact = runs.pictures()
    refined = refine(plan, runs, 30)
    begins = [plan, replace(plan, use_forecast=False), FractionPlan(), FractionPlan(arm="reuse")]
    begins = [quality(start, runs, exact) for start in begins]
    assert quality(refined, runs, exact) > max(begins)
    schedule = Schedule(plan.curves.timesteps)
    assert refined.find(schedule).share <= 0.7
    assert refined.find(schedule).rows != plan.find(schedule).rows
    assert refine(plan, runs, 30).refined == refined.refined


@pytest.mark.parametrize("tries", [1, 3, 12])
def test_tries_are_runs(plan, runs, tries, monkeypatch):
    drawn = counted(monkeypatch)
    refine(plan, replace(runs), tries)  # of which nothing is drawn yet
    assert len(drawn) == tries + 1  # and the dense one


def test_it_ends_where_no_neighbour_is_better(plan, runs, monkeypatch):
    """Pictures that know one best row: found, and every neighbour of it looked at, no more."""
    first = plan.find(Schedule(plan.curves.timesteps)).rows
    first = {kind: first[layer] for layer, kind in plan.curves.layers.items()}
    drawn = counted(monkeypatch)
    worse = itertools.count(1)
    monkeypatch.setattr(refining, "psnr", lambda *_: np.array([-next(worse)]))
    refined = refine(plan, runs, 10_000)
    assert refined.refined == first
    assert 10 < len(drawn) < 200


def test_neighbours_are_one_move_away():
    rows = ("##=#~##=##", "#####=#=##")
    seen = set(refining._neighbours(rows, use_forecast=True))
    assert ("###=~##=##", rows[1]) in seen  # computed a place earlier
    assert ("##=#=##=##", rows[1]) in seen  # reused instead of forecast
    assert ("##=####=##", rows[1]) in seen  # one more computed
    assert ("##=####=##", "####~=#=##") in seen  # by the other kind
    for new in seen:
        pairs = zip("".join(rows), "".join(new), strict=True)
        changed = sum(before != after for before, after in pairs)
        assert changed in (1, 2)
    without = set(refining._neighbours(("##=##=####",), use_forecast=False))
    assert not any("~" in row for (row,) in without)


@pytest.mark.parametrize(
    ("row", "is_sound"),
    [
        ("##=#~#=###", True),
        ("=#########", False),
        ("########=#", False),
        ("#~########", False),  # one output before it
        ("##~~~~####", True),
        ("##=====###", False),  # five in a row
    ],
)
def test_sound_rows(row, is_sound):
    assert refining._is_sound(row) == is_sound


@pytest.fixture
def refined(plan):
    rows = {"spatial": "##=#~#=###", "cross": "###=#=#~##"}
    return replace(plan, refined=rows)


def test_refined_rows_are_followed_and_kept_in_the_file(pixart, refined, tmp_path):
    refined.save(tmp_path / "plan.json")
    loaded = CalibratedPlan.load(tmp_path / "plan.json")
    assert loaded.refined == refined.refined
    with broadcast(pixart.pipe, loaded) as handle:
        pixart(STEPS)
        report = handle.report()
    for layer in report.layers:
        assert layer.row == refined.refined["cross" if "attn2" in layer.layer else "spatial"]
    assert report.computed_share == pytest.approx(0.7)
    assert "70.0% of the calls computed; rows refined by trying" in loaded.describe()


def test_other_schedules_choose_by_the_curves(plan, refined):
    other = Schedule(tuple(np.linspace(990, 10, 20)))
    assert refined.find(other).rows == plan.find(other).rows
    noisy = Schedule(plan.curves.timesteps, is_noisy=True)
    assert refined.find(noisy).rows == plan.find(noisy).rows
    reusing = {kind: row.replace("~", "=") for kind, row in refined.refined.items()}
    rows = replace(plan, refined=reusing).find(noisy).rows
    assert set(rows.values()) == set(reusing.values())


def test_bytes_are_kept_by_refined_rows_too(refined):
    tight = replace(refined, max_bytes=24 * 24 * 4 * 4)
    rows = tight.find(Schedule(refined.curves.timesteps)).rows
    assert 0 < sum(set(row) == {"#"} for row in rows.values()) < len(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.6}, "the refined rows compute more than a share of 0.6; refine them again"),
        ({"refined": {"cross": "##########"}}, "a row for each kind of .'cross', 'spatial'., got"),
        ({"refined": {"cross": "###", "spatial": "###"}}, "expected 10 letters"),
    ],
    ids=str,
)
def test_rows_that_are_not_for_the_plan(refined, options, message):
    with pytest.raises(ValueError, match=message):
        replace(refined, **options)


@pytest.mark.parametrize("is_better", [True, False])
def test_refined_rows_are_taken_where_they_hold(plan, runs, is_better, monkeypatch):
    """On held-out prompts as well as on those they were found on."""
    held_out = replace(runs, prompts=("a bird",), seed=7)
    measured = refining.quality

    def judged(own, where):
        found = measured(own, where)
        is_worse = where is held_out and bool(own.refined) != is_better
        return found - 50 if is_worse else found

    monkeypatch.setattr(refining, "quality", judged)
    assert bool(refine(plan, runs, 4, held_out).refined) == is_better


@pytest.mark.parametrize("goal", [30.0, 45.0])
def test_a_goal_is_reached_on_held_out_prompts(pixart, goal):
    found = calibrate(
        pixart.pipe,
        ["a cat", "a dog"],
        steps=STEPS,
        psnr_goal=goal,
        held_out=["a bird"],
        refine=3,
        call=pixart.arguments,
    )
    assert found.checked["psnr"] >= goal
    assert found.checked["computed_share"] <= found.share < 1


def test_calibrate_refines(pixart):
    options = {"steps": STEPS, "calls": 0.7, "call": pixart.arguments}
    assert calibrate(pixart.pipe, ["a cat"], refine=0, **options).refined == {}
    assert set(calibrate(pixart.pipe, ["a cat"], refine=2, **options).refined) == {
        "spatial",
        "cross",
    }
    with pytest.raises(ValueError, match="refine must be a number of runs, 0 for none, got -1"):
        calibrate(pixart.pipe, ["a cat"], refine=-1, **options)
