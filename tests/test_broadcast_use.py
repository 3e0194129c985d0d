"""Broadcasting beside other things: operators, the arm "correct", compiled models, wrong use."""

import contextlib
import json
import logging
import pickle

import diffusers
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import foveate
from broadcast_pipelines import Latents
from foveate.attn_processors.broadcast import FractionPlan, PabPlan, TablePlan, broadcast
from foveate.attn_processors.broadcast.wrapper import Broadcasting
from foveate.attn_processors.layouts import attention_layers
from tiny_pipelines import Tiny

STEPS = 10
LOCAL = foveate.LocalAttnProcessor(radius=2)
REUSE = FractionPlan(every=3, arm="reuse")


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux")


@pytest.fixture(autouse=True)
def nothing_left(request):
    yield
    if "flux" in request.fixturenames:
        model = request.getfixturevalue("flux").model
        assert all(type(p).__name__ == "FluxAttnProcessor" for p in model.attn_processors.values())
        assert not model._forward_pre_hooks
        assert not model._forward_hooks


# BroadcastAttnProcessor


def test_processor_equals_operator_then_plan(flux):
    with foveate.apply(flux.pipe, LOCAL), broadcast(flux.pipe, FractionPlan(every=3)):
        want = flux(steps=STEPS)
    with foveate.apply(flux.pipe, foveate.BroadcastAttnProcessor(LOCAL, every=3)) as handle:
        assert torch.equal(flux(steps=STEPS), want)
        report = handle.report()
    assert [row.forwards for row in report.layers] == [6, 6]
    (own,) = report.companions
    assert [row.row for row in own.layers] == ["##~~#~~###"] * 2
    (as_json,) = json.loads(report.to_json())["companions"]
    assert [row["row"] for row in as_json["layers"]] == ["##~~#~~###"] * 2
    assert "LocalAttnProcessor(radius=2): ran in 2 of 2 layers" in str(report)
    assert "attention computed in 60.0% of the calls" in str(report)


def test_processor_that_always_computes_is_its_inner(flux):
    with foveate.apply(flux.pipe, LOCAL):
        want = flux(steps=STEPS)
    with foveate.apply(flux.pipe, foveate.BroadcastAttnProcessor(LOCAL, every=1)):
        assert torch.equal(flux(steps=STEPS), want)


def test_two_processors_in_one_mapping(flux):
    rules = {
        "single_*": foveate.BroadcastAttnProcessor(LOCAL, every=2),
        "*": foveate.BroadcastAttnProcessor(foveate.SoftmaxAttnProcessor(), every=4),
    }
    with foveate.apply(flux.pipe, rules) as handle:
        flux(steps=STEPS)
        rows = [row for own in handle.report().companions for row in own.layers if row.row]
    assert {row.layer.split("_")[0]: row.row for row in rows} == {
        "transformer": "##~~~#~~##",
        "single": "##~#~#~###",
    }


def test_processor_repr_and_options():
    processor = foveate.BroadcastAttnProcessor(LOCAL, every=3, window=(0, 0.5))
    inner = "LocalAttnProcessor(radius=2)"
    assert repr(processor) == f"BroadcastAttnProcessor({inner}, every=3, window=(0, 0.5))"
    with pytest.raises(
        ValueError, match="every must be an integer >= 1 .1 computes always., got 0"
    ):
        foveate.BroadcastAttnProcessor(LOCAL, every=0)
    with pytest.raises(ValueError, match="inner must be another foveate processor, got None"):
        foveate.BroadcastAttnProcessor(None)
    with pytest.raises(ValueError, match="inner must be another foveate processor"):
        foveate.BroadcastAttnProcessor(processor)


def test_processor_the_stock_way_is_refused():
    tiny = Tiny("flux")
    tiny.model.set_attn_processor(foveate.BroadcastAttnProcessor(LOCAL))
    with pytest.raises(NotImplementedError, match="must know the step.*use foveate.apply"):
        tiny(steps=1)


def test_processor_without_a_schedule_is_refused(flux):
    before = dict(flux.model.attn_processors)
    with pytest.raises(ValueError, match="needs the schedule"):
        foveate.apply(flux.model, foveate.BroadcastAttnProcessor(LOCAL))
    assert all(flux.model.attn_processors[name] is p for name, p in before.items())


# any order of putting on and taking off


@pytest.mark.parametrize("last_on", ["broadcast", "apply"])
@pytest.mark.parametrize("first_off", ["broadcast", "apply"])
def test_any_order(flux, last_on, first_off):
    before, dense = dict(flux.model.attn_processors), flux(steps=STEPS)
    with broadcast(flux.pipe, REUSE):
        alone = {"broadcast": flux(steps=STEPS)}
    with foveate.apply(flux.pipe, LOCAL):
        alone["apply"] = flux(steps=STEPS)
        with broadcast(flux.pipe, REUSE):
            both = flux(steps=STEPS)
    put = {
        "apply": lambda: foveate.apply(flux.pipe, LOCAL),
        "broadcast": lambda: broadcast(flux.pipe, REUSE),
    }
    names = sorted(put, key=lambda name: name == last_on)
    handles = {name: put[name]() for name in names}
    assert torch.equal(flux(steps=STEPS), both)
    assert {row.operator for row in handles["apply"].report().layers} == {"local"}
    handles.pop(first_off).remove()
    (left,) = handles
    assert torch.equal(flux(steps=STEPS), alone[left])
    handles[left].remove()
    assert all(flux.model.attn_processors[name] is p for name, p in before.items())
    assert torch.equal(flux(steps=STEPS), dense)


def test_settings_made_meanwhile_are_kept(flux):
    processor = flux.model.transformer_blocks[0].attn.processor
    with broadcast(flux.pipe, REUSE):
        flux.model.set_attention_backend("native")
    assert processor._attention_backend is not None
    flux.model.reset_attention_backend()


def test_processor_replaced_meanwhile(flux):
    attention = flux.model.transformer_blocks[0].attn
    stock = attention.processor
    mine = type(stock)()
    with broadcast(flux.pipe, REUSE) as handle:
        attention.set_processor(mine)
        flux(steps=STEPS)
        assert "replaced by FluxAttnProcessor since" in handle.report().layers[0].reason
    assert attention.processor is mine
    attention.set_processor(stock)


def test_pickled_model_computes_everything(flux):
    twin, dense = Tiny("flux"), flux(steps=STEPS)
    with broadcast(flux.pipe, REUSE):
        twin.pipe.transformer = pickle.loads(pickle.dumps(flux.model))
    for part in ("vae", "text_encoder", "text_encoder_2"):
        setattr(twin.pipe, part, getattr(flux.pipe, part))
    assert torch.equal(twin(steps=STEPS), dense)


# the arm "correct"


def test_correct_adds_what_the_operator_lacked(flux):
    """Against an explicit loop: dense at anchors, local plus the difference of the anchor after."""
    rows = "###+#++###"
    layers = attention_layers(flux.model)
    seen = {name: [] for name in layers}

    def note(name):
        def hook(module, args, kwargs, out):
            seen[name].append((args, kwargs, out))

        return hook

    hooks = [m.register_forward_hook(note(n), with_kwargs=True) for n, m in layers.items()]
    with foveate.apply(flux.pipe, LOCAL) as handle:
        with broadcast(flux.pipe, TablePlan(dict.fromkeys(layers, rows))) as outer:
            flux(steps=STEPS)
            corrected = [row.corrected for row in outer.report().layers]
        for hook in hooks:
            hook.remove()
        local = {n: [m(*a, **k) for a, k, _ in seen[n]] for n, m in _quiet(layers, flux)}
        handle.remove()
    dense = {n: [m(*a, **k) for a, k, _ in seen[n]] for n, m in _quiet(layers, flux)}
    assert corrected == [3, 3]
    for name in layers:
        for i, letter in enumerate(rows):
            out = _first(seen[name][i][2])
            own, exact = _first(local[name][i]), _first(dense[name][i])
            assert not torch.allclose(own, exact, atol=1e-5)
            if letter == "#":
                is_anchor = rows[i + 1 : i + 2] == "+"
                assert torch.allclose(out, exact if is_anchor else own, atol=1e-6)
            else:
                anchor = rows.rindex("#", 0, i)
                lacked = _first(dense[name][anchor]) - _first(local[name][anchor])
                assert torch.allclose(out, own + lacked, atol=1e-5)


def _quiet(layers, flux):
    # a layer alone needs no forward of the model: the tracker still holds the last grid
    with torch.no_grad():
        yield from layers.items()


def _first(out):
    return out[0] if isinstance(out, tuple) else out


def test_correct_without_an_operator_computes(flux, caplog):
    want = flux(steps=STEPS)
    with caplog.at_level(logging.WARNING), broadcast(flux.pipe, FractionPlan(arm="correct")) as h:
        assert torch.equal(flux(steps=STEPS), want)
        assert "2 layers run no operator to correct, and compute" in h.report().notes
    assert "run no operator to correct" in caplog.text


def test_correct_with_a_window_over_the_grid_is_dense(flux):
    want = flux(steps=STEPS)
    wide = foveate.LocalAttnProcessor(radius=64)
    with foveate.apply(flux.pipe, wide), broadcast(flux.pipe, FractionPlan(arm="correct")):
        assert torch.allclose(flux(steps=STEPS), want, atol=1e-5)


@pytest.mark.parametrize("operators", [{}, {"*": LOCAL}], ids=["alone", "with apply"])
def test_correct_keeps_what_a_modulation_does(flux, operators):
    scene = foveate.Scene("a [cat]{a}", regions={"a": (0, 0, 0.5, 1)})
    call = {"prompt": scene.prompt, "steps": STEPS}
    plan = FractionPlan(window=(0, 1), arm="correct")
    with contextlib.ExitStack() as stack:
        if operators:
            stack.enter_context(foveate.apply(flux.pipe, operators))
        plain = flux(**call)
        stack.enter_context(foveate.modulate(flux.pipe, [foveate.RegionBind(scene)]))
        want = flux(**call)
        handle = stack.enter_context(broadcast(flux.pipe, plan))
        assert torch.equal(flux(**call), want)
        assert "2 layers run no operator to correct, and compute" in handle.report().notes
    assert not torch.allclose(want, plain, atol=1e-6)


# torch.compile


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arm", "store"), [("reuse", "int8"), ("forecast", "native")], ids=["reuse", "forecast"]
)
def test_t9_a_compiled_model_is_two_graphs(counter, arm, store):
    tiny = Tiny("flux")
    with broadcast(tiny.pipe, FractionPlan(every=2, arm=arm), store=store) as handle:
        want = tiny(steps=STEPS)
        tiny.model.compile(backend=counter, fullgraph=True)
        assert torch.equal(tiny(steps=STEPS), want)
        assert handle.report().computed_share == pytest.approx(0.7)
    assert counter.frame_count == 2


def test_t9_repeated_blocks_share_their_graphs(counter):
    tiny = Tiny("flux", num_layers=4, num_single_layers=4)
    with broadcast(tiny.pipe, REUSE):
        want = tiny(steps=STEPS)
        tiny.model.compile_repeated_blocks(backend=counter, fullgraph=True)
        assert torch.equal(tiny(steps=STEPS), want)
    assert counter.frame_count <= 5


def test_t9_a_compiled_video_model(counter):
    cogvideox = Latents("cogvideox")
    with broadcast(cogvideox.pipe, REUSE):
        want = cogvideox(STEPS)
        cogvideox.pipe.transformer = torch.compile(
            cogvideox.pipe.transformer, backend=counter, fullgraph=True
        )
        assert torch.equal(cogvideox(STEPS), want)
    assert counter.frame_count == 2


# two denoisers, and models without a pipeline


def test_two_denoisers_follow_one_schedule():
    wan = Latents("wan", two_denoisers=True)
    want = wan(20)
    with broadcast(wan.pipe, FractionPlan(every=1)):
        assert torch.equal(wan(20), want)
    held = []
    with broadcast(wan.pipe, REUSE) as handle:
        parts = [part.controller.cache for part in handle._parts]
        hook = wan.pipe.transformer_2.register_forward_hook(lambda *_: held.append(parts[0].held))
        got = wan(20)
        high, low = handle.reports()
        assert torch.equal(wan(20), got)
    hook.remove()
    assert not torch.equal(got, want)
    assert high.evaluations + low.evaluations == 20
    assert min(high.evaluations, low.evaluations) > 3
    assert high.layers[0].reused > 0
    assert low.layers[0].reused > 0
    assert low.layers[0].row[0] == high.layers[0].row[0] == "#"
    # what the first kept for steps that the second has taken over is freed
    assert held[-1] == 0
    assert parts[0].peak > 0


def test_reset_starts_over(flux):
    scheduler = flux.pipe.scheduler
    with broadcast(flux.model, REUSE, scheduler=scheduler) as handle:
        want = flux(steps=STEPS)
        handle.reset()
        assert torch.equal(flux(steps=STEPS), want)


# wrong use


def test_training_mode_is_refused(flux):
    flux.model.train()
    with pytest.raises(ValueError, match="FluxTransformer2DModel is in training mode"):
        broadcast(flux.pipe, REUSE)
    flux.model.eval()
    with broadcast(flux.pipe, REUSE):
        flux.model.train()
        with pytest.raises(NotImplementedError, match="does not run in training mode"):
            flux(steps=1)
        flux.model.eval()


def test_gradients_compute_everything_and_say_so():
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 3, 8, 8)
    want = [model(x, t).sample for t in scheduler.timesteps]
    with broadcast(model, REUSE, scheduler=scheduler) as handle:
        got = [model(x, t).sample for t in scheduler.timesteps]
        assert handle.report().notes == ("gradients are on: everything computes",)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(out.requires_grad for out in got)


def test_few_steps_are_declared_useless(flux, caplog):
    want = flux(steps=4)
    with caplog.at_level(logging.WARNING), broadcast(flux.pipe, FractionPlan()) as handle:
        assert torch.equal(flux(steps=4), want)
        assert torch.equal(flux(steps=4), want)
        report = handle.report()
    assert caplog.text.count("useless here: a run of 4 evaluations, fewer than 8") == 1
    assert "note: useless here" in str(report)
    assert report.computed_share == 1


def test_zero_steps_are_refused(flux):
    class Empty:
        timesteps = torch.zeros(0)

    with broadcast(flux.model, REUSE, scheduler=Empty()) as handle:
        assert handle.report().forwards == 0
        empty = Empty()
    with (
        broadcast(flux.model, REUSE, scheduler=empty),
        pytest.raises(ValueError, match="the schedule has zero steps"),
    ):
        flux(steps=1)


def test_broadcasting_twice_is_refused(flux):
    with broadcast(flux.pipe, REUSE) as handle:
        want = flux(steps=STEPS)
        with pytest.raises(ValueError, match="is broadcast already; call remove"):
            broadcast(flux.pipe, REUSE)
        assert torch.equal(flux(steps=STEPS), want)
    assert not isinstance(flux.model.transformer_blocks[0].attn.processor, Broadcasting)
    assert handle.report().held_bytes == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": None}, "plan must be a FractionPlan, PabPlan or CalibratedPlan"),
        ({"store": "int4"}, "store must be native, bf16, int8, fp8, got 'int4'"),
        ({"layers": "blocks.7*"}, "'blocks.7.*' matches no attention layer; near"),
        ({"layers": []}, "has no attention layer for .."),
        ({"plan": TablePlan({"x": "##"})}, "for other layers: it has x, the model has transf"),
    ],
    ids=str,
)
def test_bad_options(flux, options, message):
    with pytest.raises(ValueError, match=message):
        broadcast(flux.pipe, **{"plan": REUSE, **options})


def test_bad_targets(flux):
    with pytest.raises(ValueError, match="a diffusers pipeline or its denoiser, got str"):
        broadcast("a pipeline", REUSE)
    with pytest.raises(ValueError, match="needs the schedule it is driven by"):
        broadcast(flux.model, REUSE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FractionPlan(every=0), "every must be an integer >= 1"),
        (lambda: FractionPlan(cross=1.5), "cross must be an integer >= 1"),
        (lambda: FractionPlan(window=(0.5, 0.2)), "window must be .* got .0.5, 0.2."),
        (lambda: FractionPlan(arm="guess"), "arm must be reuse, forecast, correct, got 'guess'"),
        (lambda: PabPlan(spatial=0), "spatial must be an integer >= 1"),
        (lambda: PabPlan(window=(800, 100)), "low < high, got .800, 100."),
    ],
    ids=["every", "cross", "window", "arm", "spatial", "pab window"],
)
def test_bad_plans(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("row", ["##x#######", "=#########", "###"])
def test_bad_rows(flux, row):
    rows = {"transformer_blocks.0.attn": row}
    with broadcast(flux.pipe, TablePlan(rows)), pytest.raises(ValueError, match="evaluation|lette"):
        flux(steps=STEPS)


def test_some_layers(flux):
    with broadcast(flux.pipe, REUSE, layers="single_*") as handle:
        flux(steps=STEPS)
        first, second = handle.report().layers
    assert (first.reason, first.computed) == ("not selected", 0)
    assert second.row == "##==#==###"
