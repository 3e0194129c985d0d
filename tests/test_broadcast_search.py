"""Plans from curves: the best rows against all rows tried, other schedules, files, wrong use."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from broadcast_pipelines import Latents
from foveate.attn_processors.broadcast import CalibratedPlan, broadcast
from foveate.attn_processors.broadcast.curves import MAX_LAG, Curves
from foveate.attn_processors.broadcast.schedule import Schedule
from foveate.attn_processors.broadcast.search import search
from foveate.attn_processors.fingerprint import fingerprint
from foveate.attn_processors.layouts import attention_layers


def drifting(timesteps, layers=2, seed=0, sizes=None):
    """Curves of outputs that move with time: reuse errs by the distance, forecasts by curvature."""
    rng = np.random.default_rng(seed)
    t, n = np.asarray(timesteps, dtype=float), len(timesteps)
    speed = rng.uniform(0.5, 2, layers) / 1000
    bend = rng.uniform(0.1, 1, layers) / 1e5
    reuse = np.full((layers, n, MAX_LAG), np.inf)
    forecast = np.full((layers, n, MAX_LAG, MAX_LAG + 1), np.inf)
    for j, g in itertools.product(range(n), range(1, MAX_LAG + 1)):
        if j >= g:
            reuse[:, j, g - 1] = speed * abs(t[j - g] - t[j])
        for h in range(1, MAX_LAG + 2):
            if j >= g + h:
                a, b = abs(t[j - g] - t[j]), abs(t[j - g - h] - t[j - g])
                forecast[:, j, g - 1, h - 1] = bend * a * (a + b)
    kinds = ["spatial", "cross"] * layers
    names = {f"blocks.{i}": kinds[i] for i in range(layers)}
    weight = {kind: np.exp(-(t - 400) / 200 * k) for k, kind in enumerate(("spatial", "cross"), 1)}
    return Curves(
        timesteps=tuple(t),
        layers=names,
        reuse=reuse,
        forecast=forecast,
        weight=weight,
        forecast_weight={kind: w * (0.3 + t / 1000) for kind, w in weight.items()},
        seconds=rng.uniform(1, 3, layers),
        num_bytes=np.array([100.0] * layers if sizes is None else sizes),
        forward_seconds=20.0,
    )


def of_kind(curves, kind, name):
    """Errors of all layers of a kind as one: the root of the sum of squares."""
    own = [i for i, k in enumerate(curves.layers.values()) if k == kind]
    return np.linalg.norm(getattr(curves, name)[own], axis=0)


def weighed(curves, kind):
    """Reuse [n, G] and forecast [n, G, G + 1] of a kind, times the roots of their weights."""
    reuse, forecast = (of_kind(curves, kind, name) for name in ("reuse", "forecast"))
    weights = curves.weight[kind] ** 0.5, curves.forecast_weight[kind] ** 0.5
    return weights[0][:, None] * reuse, weights[1][:, None, None] * forecast


def error_of(curves, kind, row):
    """The predicted error of a row that all layers of a kind share, by its definition."""
    reuse, forecast = weighed(curves, kind)
    total, computed, run = 0.0, [], 0.0
    for j, letter in enumerate(row):
        if letter == "#":
            total, run = total + run**2, 0.0
            computed.append(j)
            continue
        lag = j - computed[-1]
        if letter == "~":
            gap = computed[-1] - computed[-2]
            error = forecast[j, lag - 1, gap - 1]
        else:
            error = reuse[j, lag - 1]
        run += error
    return total + run**2


def all_rows(curves, kind, n):
    """{computed calls: least error} over every row with computed ends and gaps that are allowed."""
    best = {}
    for inner in itertools.product([True, False], repeat=n - 3):
        computes = [True, *inner, True, True]
        places = [i for i, c in enumerate(computes) if c]
        if max(np.diff(places)) > MAX_LAG + 1:
            continue
        row = "".join(
            "#" if c else _better(curves, kind, places, i) for i, c in enumerate(computes)
        )
        error = error_of(curves, kind, row)
        best[len(places)] = min(best.get(len(places), np.inf), error)
    return best


def _better(curves, kind, places, i):
    before = [p for p in places if p < i]
    lag = i - before[-1]
    if len(before) < 2 or before[-1] - before[-2] > MAX_LAG + 1:
        return "="
    reuse, forecast = weighed(curves, kind)
    reuse, forecast = reuse[i, lag - 1], forecast[i, lag - 1, before[-1] - before[-2] - 1]
    return "~" if forecast < reuse else "="


@pytest.mark.parametrize("share", [0.45, 0.6, 0.75, 0.9])
def test_search_finds_what_trying_all_rows_finds(share):
    n = 11
    curves = drifting(np.linspace(990, 10, n), layers=4)  # two of each kind
    found = search(curves, share)
    rows = {}
    for layer, kind in curves.layers.items():
        assert rows.setdefault(kind, found.rows[layer]) == found.rows[layer]
    errors = [error_of(curves, kind, row) for kind, row in rows.items()]
    assert found.error == pytest.approx(sum(errors), rel=1e-6)
    calls = sum(row.count("#") for row in rows.values())
    assert calls <= share * n * len(rows)
    assert found.share == pytest.approx(calls / n / len(rows))
    # no split of as many calls over the kinds does better
    tables = [all_rows(curves, kind, n) for kind in rows]
    least = min(
        a + b
        for (i, a), (j, b) in itertools.product(*(t.items() for t in tables))
        if i + j == calls
    )
    assert found.error == pytest.approx(least, rel=1e-6)


def test_search_by_cost_and_without_forecast():
    curves = drifting(np.linspace(990, 10, 20), layers=6)
    found = search(curves, 0.5, use_cost=True)
    prices = curves.seconds / curves.seconds.sum()
    counts = np.array([row.count("#") / 20 for row in found.rows.values()])
    assert (counts * prices).sum() == pytest.approx(found.share)
    assert 0.4 < found.share <= 0.5  # a call more or less is one of all layers of a kind
    without = search(curves, 0.5, use_forecast=False)
    assert not any("~" in row for row in without.rows.values())
    assert any("~" in row for row in search(curves, 0.5).rows.values())
    assert without.error > search(curves, 0.5).error


def test_search_computes_everything_or_says_what_is_the_least():
    curves = drifting(np.linspace(990, 10, 20))
    assert set(search(curves, 1.0).rows.values()) == {"#" * 20}
    with pytest.raises(ValueError, match="a share of 0.1 is too small: .* the least here is 0.3"):
        search(curves, 0.1)


@pytest.mark.parametrize("n", [12, 20, 33])
def test_other_numbers_of_steps_are_interpolated(n):
    coarse = drifting(np.linspace(990, 10, 25)).at(np.linspace(980, 20, n))
    exact = drifting(np.linspace(980, 20, n))
    for name in ("reuse", "forecast"):
        got, want = getattr(coarse, name), getattr(exact, name)
        assert (np.isfinite(got) == np.isfinite(want)).all()
        seen = np.isfinite(want)
        assert np.allclose(got[seen], want[seen], rtol=0.05)
    for name in ("weight", "forecast_weight"):
        for kind, weight in getattr(exact, name).items():
            assert np.allclose(getattr(coarse, name)[kind], weight, rtol=0.1)


def test_repeated_timesteps_are_finite():
    t = np.repeat(np.linspace(990, 10, 10), 2)[1:]
    curves = drifting(np.linspace(990, 10, 25)).at(t)
    assert not np.isnan(curves.reuse).any()
    found = search(curves, 0.6)
    assert np.isfinite(found.error)


# the plan


@pytest.fixture(scope="module")
def pixart():
    return Latents("pixart")


@pytest.fixture
def plan(pixart):
    pixart.pipe.scheduler.set_timesteps(12)
    curves = drifting(pixart.pipe.scheduler.timesteps.numpy(), layers=4)
    layers = dict.fromkeys(attention_layers(pixart.model))
    kinds = {name: "cross" if "attn2" in name else "spatial" for name in layers}
    return CalibratedPlan(
        curves=replace(curves, layers=kinds),
        share=0.6,
        model="PixArtTransformer2DModel",
        fingerprint=fingerprint(pixart.model),
        scheduler="DDIMScheduler",
        checked={"psnr": 40.0, "worst_psnr": 30.0, "prompts": 2},
    )


def test_t14_plans_are_determined_and_survive_a_file(pixart, plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    loaded = CalibratedPlan.load(tmp_path / "plan.json")
    for steps in (12, 20):
        with broadcast(pixart.pipe, plan) as handle:
            want = pixart(steps)
            rows = [row.row for row in handle.report().layers]
        with broadcast(pixart.pipe, tmp_path / "plan.json") as handle:
            assert torch.equal(pixart(steps), want)
            assert [row.row for row in handle.report().layers] == rows
            assert 0.4 < handle.report().computed_share <= 0.6
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["rows"] == plan.find(Schedule(plan.curves.timesteps)).rows
    assert loaded.checked == plan.checked
    assert "on 2 held-out prompts 40.0 dB to dense, worst 30.0 dB" in loaded.describe()


def test_t14_unknown_layers_compute_and_are_told_once(pixart, plan, caplog):
    kinds = dict(plan.curves.layers)
    kinds = {name.replace("blocks.1.attn2", "elsewhere"): kind for name, kind in kinds.items()}
    plan = replace(plan, curves=replace(plan.curves, layers=kinds))
    with broadcast(pixart.pipe, plan) as handle:
        pixart(12)
        pixart(12)
        report = handle.report()
    (row,) = (row for row in report.layers if row.layer.endswith("1.attn2"))
    assert row.row == "#" * 12
    told = "1 layers are not in the plan and compute, such as transformer_blocks.1.attn2"
    assert report.notes == (told,)
    assert caplog.text.count(told) == 1


def test_a_model_that_changed_is_refused(pixart, plan):
    weight = pixart.model.transformer_blocks[0].attn1.to_q.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        with pytest.raises(ValueError, match="weights of this PixArt.* have changed since"):
            broadcast(pixart.pipe, plan)
    finally:
        weight.data.copy_(before)
    with broadcast(pixart.pipe, plan):
        pass


def test_a_model_in_another_precision_is_the_same(pixart):
    half = Latents("pixart").model.to(torch.bfloat16)
    assert fingerprint(half) == fingerprint(pixart.model)


def test_a_plan_of_another_model_is_refused(pixart, plan):
    with pytest.raises(ValueError, match="calibrated on a PixArt.*, this is a WanTransformer3DM"):
        broadcast(Latents("wan").pipe, plan)
    others = replace(plan.curves, layers={f"x.{n}": k for n, k in plan.curves.layers.items()})
    with pytest.raises(
        ValueError, match=r"for other layers: it has x.transf.*, the model has transf"
    ):
        broadcast(pixart.pipe, replace(plan, curves=others))


def test_a_byte_budget_drops_layers(pixart, plan):
    schedule = Schedule(plan.curves.timesteps)
    rows = replace(plan, max_bytes=10**6).find(schedule).rows
    assert rows == plan.find(schedule).rows
    tight = replace(plan, max_bytes=250).find(schedule).rows
    dropped = [name for name in rows if set(tight[name]) == {"#"}]
    held = sum(100 * (2 if "~" in row else 1) for row in tight.values() if set(row) != {"#"})
    assert 0 < len(dropped) < 4
    assert held <= 250
    assert set(replace(plan, max_bytes=0).find(schedule).rows.values()) == {"#" * 12}


def test_few_steps_compute_and_say_so(pixart, plan):
    with broadcast(pixart.pipe, plan) as handle:
        pixart(4)
        report = handle.report()
    assert {row.row for row in report.layers} == {"####"}
    assert "useless here: a run of 4 evaluations" in report.notes[0]


def test_a_share_that_fewer_steps_cannot_reach(pixart, plan):
    """The least there is, and a note; on the schedule measured it is refused."""
    with broadcast(pixart.pipe, replace(plan, share=0.35)) as handle:
        pixart(9)
        report = handle.report()
    assert report.notes == ("44% compute, the least in 9 evaluations",)
    assert report.computed_share == pytest.approx(4 / 9)
    with pytest.raises(ValueError, match="a share of 0.3 is too small"):
        replace(plan, share=0.3).find(Schedule(plan.curves.timesteps))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(note="mine"), "no whole plan: .*note"),
        (lambda d: d.pop("share"), "no whole plan: .*share"),
        (lambda d: d.pop("curves"), "no whole plan: .*curves"),
        (lambda d: d["curves"].pop("weight"), "no whole plan: .*weight"),
        (lambda d: d.update(share="0.5"), "share must be in .0, 1., got '0.5'"),
        (lambda d: d["curves"]["timesteps"].pop(), "reuse must be .4, 11, 4. for 4 layers and 11"),
        (lambda d: d["curves"]["layers"].popitem(), "reuse must be .3, 12, 4. for 3 layers"),
        (lambda d: d["curves"]["weight"]["cross"].pop(), "weights must have 12 values"),
        (lambda d: d["curves"]["weight"].pop("cross"), "weights must be of"),
        (lambda d: d["rows"].popitem(), "rows of .* are not those that follow from its curves"),
    ],
    ids=range(10),
)
def test_files_edited_by_hand_are_refused(plan, tmp_path, edit, message):
    plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    edit(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        CalibratedPlan.load(tmp_path / "plan.json")


def test_rows_may_be_left_out_of_a_file(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    del data["rows"]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert CalibratedPlan.load(tmp_path / "plan.json").describe() == plan.describe()


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"format": 99}'])
def test_a_file_that_is_no_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="no plan of `foveate calibrate`"):
        CalibratedPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_bad_share(plan, share):
    with pytest.raises(ValueError, match="share must be in .0, 1., got"):
        replace(plan, share=share)
