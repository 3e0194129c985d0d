"""Pipelines with two denoisers (Wan 2.2): one handle covers both, or the call says why not."""

import copy
import json

import pytest
import torch

import foveate
from broadcast_pipelines import Latents
from conformance import assert_restored, snapshot
from foveate.attn_processors import (
    AgentAttnProcessor,
    BroadcastAttnProcessor,
    LinearAttnProcessor,
    LinearLayer,
    LinearWeights,
    LocalAttnProcessor,
    SoftmaxAttnProcessor,
    apply,
    remove,
    status,
)

LOCAL = LocalAttnProcessor(radius=1)
NAMES = ("transformer", "transformer_2")
STEPS = 8


@pytest.fixture(scope="module")
def wan():
    return Latents("wan", two_denoisers=True)


@pytest.fixture(scope="module")
def dense(wan):
    return wan(STEPS)


@pytest.fixture(autouse=True)
def nothing_left(wan):
    """Every test leaves both denoisers as they were."""
    models = [getattr(wan.pipe, name) for name in NAMES]
    before = [snapshot(model) for model in models]
    yield
    for state, model in zip(before, models, strict=True):
        assert_restored(state, model)


def seen(wan, **arguments):
    """The timestep of every forward of each denoiser in a run."""
    found = {name: [] for name in NAMES}
    hooks = [
        getattr(wan.pipe, name).register_forward_pre_hook(
            lambda model, args, kwargs, name=name: found[name].append(float(kwargs["timestep"][0])),
            with_kwargs=True,
        )
        for name in NAMES
    ]
    wan(STEPS, **arguments)
    for hook in hooks:
        hook.remove()
    return found


def test_one_handle_covers_both(wan, dense):
    forwards = seen(wan)
    with apply(wan.pipe, LOCAL) as handle:
        got = wan(STEPS)
        reports = handle.reports()
        assert len(status(wan.pipe).layers) == 4
    assert not torch.allclose(got, dense, atol=1e-4)
    assert [report.denoiser for report in reports] == list(NAMES)
    assert [report.forwards for report in reports] == [len(forwards[name]) for name in NAMES]
    assert all(report.forwards > 0 for report in reports)
    for report in reports:
        rows = [row for row in report.layers if row.kind == "self"]
        assert [row.forwards for row in rows] == [report.forwards] * 2
    shown = str(handle.report())
    assert shown.startswith("transformer: LocalAttnProcessor(radius=1): ran in 2 of 4 layers")
    assert "\ntransformer_2: LocalAttnProcessor(radius=1): ran in 2 of 4 layers" in shown


def test_each_denoiser_runs_the_operator(wan):
    """The picture is that of both models changed one by one, and of neither alone."""
    first, second = (getattr(wan.pipe, name) for name in NAMES)
    with apply(wan.pipe, LOCAL):
        both = wan(STEPS)
    with apply(first, LOCAL):
        one = wan(STEPS)
        with apply(second, LOCAL):
            assert torch.equal(wan(STEPS), both)
    assert not torch.allclose(one, both, atol=1e-5)


def test_identity_and_limit(wan, dense):
    with apply(wan.pipe, SoftmaxAttnProcessor()):
        assert torch.equal(wan(STEPS), dense)
    with apply(wan.pipe, LocalAttnProcessor(radius=64)):
        torch.testing.assert_close(wan(STEPS), dense, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("steps", [(0.0, 0.5), (0.25, 1.0), (0.75, 1.0)])
def test_steps_are_of_the_schedule_they_share(wan, steps):
    start, end = steps
    with apply(wan.pipe, LOCAL, steps=steps) as handle:
        forwards = seen(wan)
    schedule = wan.pipe.scheduler.timesteps.tolist()
    for name, report in zip(NAMES, handle.reports(), strict=True):
        places = [schedule.index(t) / STEPS for t in forwards[name]]
        inside = sum(start <= place < end or (end == 1 and place >= start) for place in places)
        rows = [row for row in report.layers if row.kind == "self"]
        assert [row.forwards for row in rows] == [inside] * 2
        assert [row.dense_forwards for row in rows] == [len(places) - inside] * 2


def test_report_is_of_one_run_for_both(wan):
    """A run in which a denoiser has no step leaves nothing of the run before."""
    with apply(wan.pipe, LOCAL) as handle:
        wan(STEPS)
        wan.pipe.register_to_config(boundary_ratio=0.0)
        try:
            wan(STEPS)
        finally:
            wan.pipe.register_to_config(boundary_ratio=0.875)
        first, second = handle.reports()
    assert (first.forwards, second.forwards) == (2 * STEPS, 0)
    assert [row.operator for row in second.layers if row.kind == "self"] == ["-", "-"]


def test_reports_as_json_have_one_shape(wan):
    with apply(wan.pipe, LOCAL) as handle:
        wan(STEPS)
    first = json.loads(handle.report().to_json())
    second = first["companions"][0]
    assert first.keys() == second.keys()
    assert [one["denoiser"] for one in (first, second)] == list(NAMES)
    for report in (first, second):
        rows = [row for row in report["layers"] if row["kind"] == "self"]
        assert all(row["keys"].keys() == {"needed", "visited"} for row in rows)


def test_a_copy_of_one_leaves_the_other(wan):
    with apply(wan.pipe, LOCAL):
        memo = {}
        copied = copy.deepcopy(wan.pipe.transformer, memo)
        assert id(wan.pipe.transformer_2) not in memo
        remove(copied)
        remove(wan.pipe)
        assert not wan.pipe.transformer_2._forward_hooks


def test_an_error_on_the_second_undoes_the_first(wan):
    with apply(wan.pipe.transformer_2, LOCAL):
        with pytest.raises(ValueError, match="already runs a foveate operator"):
            apply(wan.pipe, LOCAL)
        assert not wan.pipe.transformer._forward_pre_hooks


def test_paused(wan, dense):
    with apply(wan.pipe, LOCAL) as handle:
        with handle.paused():
            assert torch.equal(wan(STEPS), dense)
        assert not torch.allclose(wan(STEPS), dense, atol=1e-4)


def test_broadcast_processor(wan, dense):
    with apply(wan.pipe, BroadcastAttnProcessor(SoftmaxAttnProcessor(), every=1)):
        assert torch.equal(wan(STEPS), dense)
    with apply(wan.pipe, BroadcastAttnProcessor(LOCAL, every=2, window=(0, 1))) as handle:
        got = wan(14)
        reports = [report.companions[0] for report in handle.reports()]
        held = [report.held_bytes for report in reports]
    assert got.isfinite().all()
    assert all(any(row.forecast + row.reused for row in report.layers) for report in reports)
    # the first gave back what it kept for steps that the second has taken over
    assert held[0] == 0


def test_status_names_the_denoiser(wan):
    with apply(wan.pipe, LOCAL):
        stock = {name: type(p) for name, p in wan.pipe.transformer_2.attn_processors.items()}
        lost = "blocks.1.attn1.processor"
        held = dict(wan.pipe.transformer_2.attn_processors)
        changed = {**held, lost: stock[lost].stock_class()}
        wan.pipe.transformer_2.set_attn_processor(changed)
        state = status(wan.pipe)
        wan.pipe.transformer_2.set_attn_processor(held)
    assert [row.layer for row in state.lost] == ["transformer_2.blocks.1.attn1"]
    assert "transformer_2.blocks.1.attn1 and 0 more hold WanAttnProcessor" in str(state)


def test_trained_weights_are_refused(wan):
    name = "blocks.0.attn1"
    layer = LinearLayer.of_parts(wan.pipe.transformer.get_submodule(name), ("to_q",))
    weights = LinearWeights({name: layer})
    with pytest.raises(ValueError, match=r"weights of one model.*transformer and transformer_2"):
        apply(wan.pipe, LinearAttnProcessor(weights=weights))
    with apply(wan.pipe.transformer, LinearAttnProcessor(weights=weights)):
        assert wan(STEPS).isfinite().all()


def test_modulate_is_refused(wan):
    with pytest.raises(
        NotImplementedError, match="modulate works on one denoiser, and WanPipeline"
    ):
        foveate.modulate(wan.pipe, [foveate.SelfTemperature(2.0)])


def test_without_pipeline_and_with_one_denoiser_alone(wan):
    with apply(wan.pipe.transformer_2, AgentAttnProcessor(agents=4)) as handle:
        wan(STEPS)
    (report,) = handle.reports()
    assert report.denoiser == ""
    assert report.companions == ()
