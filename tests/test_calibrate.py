"""foveate.calibrate: what it measures, what it asks for, and what the plan is worth."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import foveate
from broadcast_pipelines import Latents
from foveate.attn_processors.broadcast import CalibratedPlan, PabPlan, TablePlan, broadcast
from foveate.attn_processors.broadcast.schedule import Schedule
from foveate.attn_processors.layouts import attention_layers
from foveate.cli import main
from foveate.pipelines.broadcast.calibrate import calibrate, measure
from foveate.pipelines.broadcast.plots import plot_curves, plot_rows
from foveate.pipelines.broadcast.runs import Runs, psnr

STEPS = 8
DOCS = Path(__file__).resolve().parents[1] / "docs" / "broadcast"


@pytest.fixture(scope="module")
def pixart():
    return Latents("pixart")


@pytest.fixture(scope="module")
def curves(pixart):
    runs = Runs(pipe=pixart.pipe, prompts=("a cat", "a dog"), steps=STEPS, call=pixart.arguments)
    return measure(runs)


def test_curves_are_those_of_the_layers(pixart, curves):
    """Against outputs noted by hooks of this test."""
    seen = {name: [] for name in attention_layers(pixart.model)}
    hooks = [
        module.register_forward_hook(lambda m, a, out, name=name: seen[name].append(out))
        for name, module in attention_layers(pixart.model).items()
    ]
    Runs(pipe=pixart.pipe, prompts=("a cat", "a dog"), steps=STEPS, call=pixart.arguments).latents()
    for hook in hooks:
        hook.remove()
    t = [float(x) for x in pixart.pipe.scheduler.timesteps]
    assert curves.timesteps == tuple(t)
    for place, name in enumerate(curves.layers):
        out = seen[name]
        for j, lag in ((1, 1), (5, 1), (5, 3), (7, 4)):
            want = (out[j - lag] - out[j]).abs().mean() / out[j].abs().mean()
            assert curves.reuse[place, j, lag - 1] == pytest.approx(float(want), rel=1e-3)
        j, lag, gap = 6, 2, 3
        a, b = out[j - lag], out[j - lag - gap]
        guess = a + (a - b) * (t[j] - t[j - lag]) / (t[j - lag] - t[j - lag - gap])
        want = (guess - out[j]).abs().mean() / out[j].abs().mean()
        assert curves.forecast[place, j, lag - 1, gap - 1] == pytest.approx(float(want), rel=1e-3)
    assert np.isinf(curves.reuse[:, 2, 2:]).all()
    assert (curves.seconds > 0).all()
    assert 0 < curves.share_of_time < 1
    # one [24, 24] output in float32
    assert set(curves.num_bytes) == {24 * 24 * 4}


@pytest.mark.parametrize("arm", ["=", "~"])
def test_weights_say_what_one_reuse_or_forecast_does(pixart, curves, arm):
    runs = Runs(pipe=pixart.pipe, prompts=("a cat", "a dog"), steps=STEPS, call=pixart.arguments)
    exact = runs.latents()
    own = [name for name, kind in curves.layers.items() if kind == "cross"]
    place = 4 if arm == "=" else 5
    once = "#" * place + arm + "#" * (STEPS - place - 1)
    rows = {name: once if name in own else "#" * STEPS for name in curves.layers}
    with broadcast(pixart.pipe, TablePlan(rows)):
        error = float(((runs.latents() - exact) ** 2).mean())
    places = [list(curves.layers).index(name) for name in own]
    if arm == "=":
        weight, errors = curves.weight, curves.reuse[places, place, 0]
    else:
        weight, errors = curves.forecast_weight, curves.forecast[places, place, 0, 0]
    predicted = weight["cross"][place] * (errors**2).sum()
    assert predicted == pytest.approx(error, rel=1e-2)


def test_calibrate_for_calls_and_its_check(pixart, tmp_path):
    plan = calibrate(
        pixart.pipe,
        ["a cat", "a dog"],
        steps=STEPS,
        calls=0.7,
        held_out=["a bird"],
        call=pixart.arguments,
    )
    assert (plan.model, plan.scheduler) == ("PixArtTransformer2DModel", "DDIMScheduler")
    assert plan.checked["prompts"] == 1
    assert plan.checked["computed_share"] <= 0.7
    assert plan.checked["worst_psnr"] <= plan.checked["psnr"] < 99
    assert set(plan.versions) == {"diffusers", "torch"}
    plot_curves(plan, tmp_path / "curves.png")
    plot_rows(plan, tmp_path / "plan.png")
    with broadcast(pixart.pipe, plan) as handle:
        pixart(STEPS)
        rows = {row.layer: row.row for row in handle.report().layers}
    assert rows == plan.find(Schedule(plan.curves.timesteps)).rows


def test_psnr():
    exact = np.zeros((2, 4, 4, 3))
    pictures = exact.copy()
    pictures[0] += 0.1
    assert psnr(pictures, exact) == pytest.approx([20, 99])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"steps": 5}, "5 evaluations change too much .* calibrate with 8 or more"),
        ({"prompts": "a cat"}, "prompts must be a list of at least one prompt, got 'a cat'"),
        ({"prompts": []}, "prompts must be a list"),
        ({"cost": 0.5}, "give one of calls, cost and psnr_goal, got .'calls', 'cost'."),
        ({"calls": None}, "give one of calls, cost and psnr_goal, got none"),
        ({"calls": None, "psnr_goal": 30.0}, "give held_out"),
        ({"calls": None, "psnr_goal": float("nan")}, "psnr_goal must be a number of dB, got nan"),
        ({"calls": 1.5}, "calls must be a share in .0, 1., got 1.5"),
        ({"calls": None, "cost": -1}, "cost must be a share in .0, 1., got -1"),
        ({"calls": 0.05, "refine": 0}, "a share of 0.05 is too small"),
        ({"held_out": "a cat"}, "held_out must be a list of prompts, got 'a cat'"),
        ({"max_bytes": "2GB"}, "max_bytes must be an integer >= 0, got '2GB'"),
        ({"max_bytes": -5}, "max_bytes must be an integer >= 0, got -5"),
        ({"call": {"output_type": "pil"}}, "output_type of the call are set here"),
    ],
    ids=str,
)
def test_bad_options(pixart, options, message):
    asked = {"prompts": ["a cat"], "steps": STEPS, "calls": 0.7, "call": pixart.arguments}
    asked |= options
    prompts = asked.pop("prompts")
    with pytest.raises(ValueError, match=message):
        calibrate(pixart.pipe, prompts, **asked)


@pytest.fixture(scope="module")
def two_denoisers():
    """A tiny Wan 2.2 whose second denoiser takes over in the middle, and its curves."""
    wan = Latents("wan", two_denoisers=True)
    wan.pipe.register_to_config(boundary_ratio=0.9)
    call = {**wan.arguments, "height": 32, "width": 48, "max_sequence_length": 16}
    runs = Runs(pipe=wan.pipe, prompts=("a cat",), steps=12, call=call)
    return wan, runs, measure(runs)


def first_below(limit, timesteps):
    return next(i for i, t in enumerate(timesteps) if t < limit)


def test_nothing_is_read_across_two_denoisers(two_denoisers):
    wan, runs, curves = two_denoisers
    wan.pipe.scheduler.set_timesteps(20)
    others = curves.at(wan.pipe.scheduler.timesteps.tolist())
    start = first_below(900, curves.timesteps)
    halfway = sum(curves.timesteps[start - 1 : start + 1]) / 2
    for own, limit in ((curves, 900), (others, halfway)):
        n, start = len(own.timesteps), first_below(limit, own.timesteps)
        assert 3 < start < n - 3
        for j in range(n):
            for lag in range(1, 5):
                is_known = j - lag >= (start if j >= start else 0)
                assert np.isfinite(own.reuse[:, j, lag - 1]).all() == is_known
                for gap in range(1, 6):
                    is_known = j - lag - gap >= (start if j >= start else 0)
                    assert np.isfinite(own.forecast[:, j, lag - 1, gap - 1]).all() == is_known
        for weights in (own.weight, own.forecast_weight):
            assert all(
                np.isfinite(weight).all() and (weight > 0).all() for weight in weights.values()
            )


def test_two_denoisers_get_one_plan(two_denoisers, tmp_path):
    wan, runs, curves = two_denoisers
    plan = calibrate(runs.pipe, runs.prompts, steps=12, calls=0.7, refine=4, call=runs.call)
    plan.save(tmp_path / "plan.json")
    start = first_below(900, curves.timesteps)
    with broadcast(wan.pipe, tmp_path / "plan.json") as handle:
        runs.latents()
        first, second = handle.reports()
    rows = plan.find(Schedule(plan.curves.timesteps)).rows
    for report, own in ((first, slice(0, start)), (second, slice(start, None))):
        for layer in report.layers:
            assert layer.row == rows[layer.layer][own]
    with torch.no_grad():
        wan.pipe.transformer_2.blocks[0].attn1.to_q.weight.mul_(2)
    with pytest.raises(ValueError, match="weights of this Wan.* have changed"):
        broadcast(wan.pipe, plan)


def test_two_denoisers_of_other_layers_are_refused():
    wan = Latents("wan", two_denoisers=True)
    wan.pipe.transformer_2.blocks = wan.pipe.transformer_2.blocks[:1]
    with pytest.raises(ValueError, match="two denoisers of the pipeline have other layers"):
        calibrate(wan.pipe, ["a cat"], steps=STEPS, calls=0.5)


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, told in (
        (["--prompts", str(tmp_path / "empty.txt")], "--prompts: .* has no prompts"),
        (["--prompts", __file__, "--out", "/no/such/plan.json"], "--out names a folder"),
        (["--prompts", __file__, "--out", str(tmp_path)], "--out must be a file"),
        (["--prompts", sys.executable], "--prompts: .* is no text file"),
        (["--prompts", __file__, "--calls", "2"], "'--calls'"),
    ):
        with pytest.raises(SystemExit):
            main(["calibrate", *arguments])
        assert re.search(told, capsys.readouterr().err)


@pytest.mark.slow
def test_t13_better_than_pab_at_equal_calls(capsys):
    """On a trained model, held-out prompts; fewer dense steps at equal cost are shown beside it."""
    from foveate.pipelines.broadcast.study import asks_of
    from foveate.pipelines.shapes.load import MODELS

    plan = CalibratedPlan.load(DOCS / "flux-25.json")
    pipe = foveate.load_shapes("flux")
    prompts = tuple(ask.caption for ask in asks_of("flux", 4, seed=2))
    runs = Runs(pipe=pipe, prompts=prompts, steps=25, call=MODELS["flux"].call)
    exact = runs.pictures()
    found = {}
    for name, own in (("pab", PabPlan(spatial=3)), ("calibrated", plan)):
        with broadcast(pipe, own) as handle:
            found[name] = psnr(runs.pictures(), exact).mean()
            assert handle.report().computed_share == pytest.approx(0.48)
    steps = round(25 * (1 - plan.curves.share_of_time * 0.52))
    fewer = Runs(pipe=pipe, prompts=prompts, steps=steps, call=MODELS["flux"].call)
    found[f"{steps} dense steps"] = psnr(fewer.pictures(), exact).mean()
    with capsys.disabled():
        told = {name: round(float(value), 1) for name, value in found.items()}
        sys.stdout.write(f"{told}\n")
    assert found["calibrated"] >= found["pab"] + 5


def test_written_plans_are_json_with_their_rows():
    written = json.loads((DOCS / "flux-25.json").read_text())
    assert written["model"] == "FluxTransformer2DModel"
    assert all(len(row) == 25 for row in written["rows"].values())
    assert torch.__version__.split("+")[0] in written["versions"]["torch"]


def test_peers_are_counted_on_a_pipeline_of_their_own():
    from foveate.pipelines.broadcast.methods import run_peer
    from foveate.pipelines.broadcast.peers import counted_calls, peers
    from foveate.pipelines.shapes.load import MODELS

    pipe = foveate.load_shapes("flux")
    known = peers(pipe)
    call = {**MODELS["flux"].call, "height": 32, "width": 32}
    runs = Runs(pipe=pipe, prompts=("a red star on a teal background",), steps=12, call=call)
    with counted_calls(pipe) as dense:
        before = runs.pictures()
    for name in ("hook (2)", "TaylorSeer (2)", "FirstBlockCache (0.2)"):
        pictures, computed = run_peer(known[f"diffusers' {name}"], runs)
        assert 0.4 < computed / len(dense) < 1
        assert not np.array_equal(pictures, before)
        assert np.array_equal(runs.pictures(), before)


def test_peers_are_those_of_the_model_that_are_installed(monkeypatch):
    from foveate.pipelines.broadcast.peers import peers

    installed = {"DeepCache", "cache_dit"}
    monkeypatch.setattr(
        "foveate.pipelines.broadcast.peers.find_spec", lambda name: name in installed or None
    )
    sd, flux = foveate.load_shapes("sd"), foveate.load_shapes("flux")
    assert set(peers(sd)) == {f"DeepCache, interval {n}" for n in (2, 3, 5)}
    assert "cache-dit, threshold 0.12" in peers(flux)
    installed.clear()
    assert peers(sd) == {}
    assert all(name.startswith("diffusers'") for name in peers(flux))
