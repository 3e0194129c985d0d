"""foveate.apply on stock pipelines: identity, any size, undo, no silence, compile, neighbours."""

import copy
import gc
import json
import logging
import pickle
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)
from torch._dynamo.testing import CompileCounter

from foveate.attn_processors import (
    AgentAttnProcessor,
    BroadcastAttnProcessor,
    FoveatedAttnProcessor,
    LocalAttnProcessor,
    NeighborhoodAttnProcessor,
    SoftmaxAttnProcessor,
    WindowAttnProcessor,
    apply,
    remove,
)
from foveate.attn_processors.redirect import Redirected
from foveate.kernels import local_keys
from foveate.kernels.layout import TokenLayout
from probes import GainAttnProcessor, ZeroAttnProcessor
from tiny_pipelines import Tiny

FAMILIES = ["sd", "sdxl", "flux", "sd3"]
LOCAL = LocalAttnProcessor(radius=3)
LOGGER = "foveate.attn_processors.report"


def rows_of(handle, **where):
    """Rows of the report whose fields are as asked."""
    rows = handle.report().layers
    return [row for row in rows if all(getattr(row, k) == v for k, v in where.items())]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request):
    return Tiny(request.param)


@pytest.fixture(scope="module")
def sd():
    return Tiny("sd")


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux")


@pytest.fixture(autouse=True)
def nothing_left(request):
    """Every test must leave the shared pipelines as they were."""
    yield
    for name in ("tiny", "sd", "flux"):
        if name in request.fixturenames:
            model = request.getfixturevalue(name).model
            assert not any(isinstance(p, Redirected) for p in model.attn_processors.values())
            assert not model._forward_pre_hooks
            assert not model._forward_hooks


# identity and limits


def test_identity(tiny):
    want = tiny()
    with apply(tiny.pipe, SoftmaxAttnProcessor()) as handle:
        assert torch.equal(tiny(), want)
    targets = [row for row in handle.report().layers if row.kind in ("self", "joint")]
    assert targets
    assert all(row.operator == "softmax" and row.forwards == 2 for row in targets)


def test_identity_is_not_empty(tiny):
    want = tiny()
    with apply(tiny.pipe, ZeroAttnProcessor()):
        assert not torch.allclose(tiny(), want)


@pytest.mark.parametrize(
    "wide",
    [
        LocalAttnProcessor(radius=64),
        FoveatedAttnProcessor(radius=64),
        AgentAttnProcessor(agents=4096),
        NeighborhoodAttnProcessor(kernel_size=(1, 64, 64)),
        WindowAttnProcessor(window_size=(1, 64, 64), shift=0.5),
    ],
    ids=lambda processor: processor.operator_name,
)
def test_options_over_the_grid_are_dense(tiny, wide):
    want = tiny()
    with apply(tiny.pipe, wide):
        assert torch.allclose(tiny(), want, atol=1e-5)


@pytest.mark.parametrize(
    "narrow",
    [
        LOCAL,
        FoveatedAttnProcessor(radius=2, pool=2),
        AgentAttnProcessor(agents=6),
        NeighborhoodAttnProcessor(kernel_size=(1, 3, 3)),
        WindowAttnProcessor(seed=0),
    ],
    ids=lambda processor: processor.operator_name,
)
def test_small_options_differ(tiny, narrow):
    want = tiny()
    with apply(tiny.pipe, narrow):
        got = tiny()
    assert got.isfinite().all()
    assert not torch.allclose(got, want, atol=1e-4)


def test_batch_of_two_equals_one(tiny):
    def run(prompts):
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return tiny(prompt=prompts, generator=generators)

    with apply(tiny.pipe, LOCAL):
        both = run(["a cat", "a cat"])
        assert torch.allclose(run(["a cat"]), both[:1], atol=1e-5)
    assert not torch.equal(both[0], both[1])


# any size, owned state


def test_sizes_one_after_another(tiny):
    first, second = tiny.sizes
    with apply(tiny.pipe, LOCAL):
        alone = tiny(second)
    with apply(tiny.pipe, LOCAL):
        a = tiny(first)
        assert torch.equal(tiny(second), alone)
        assert torch.equal(tiny(first), a)


def test_layouts_that_operators_see(sd, flux):
    probe = GainAttnProcessor()
    with apply(sd.pipe, probe):
        sd(sd.sizes[1])
    assert set(probe.calls) == {TokenLayout(grid=(1, 8, 12)), TokenLayout(grid=(1, 4, 6))}
    probe = GainAttnProcessor()
    with apply(flux.pipe, probe):
        flux(flux.sizes[1])
    assert set(probe.calls) == {TokenLayout(text=16, grid=(1, 12, 10))}


def test_layouts_of_sd3():
    sd3, probe = Tiny("sd3"), GainAttnProcessor()
    with apply(sd3.pipe, probe):
        sd3()
    joint = TokenLayout(text=93, grid=(1, 16, 24), text_first=False)
    assert set(probe.calls) == {joint, TokenLayout(grid=(1, 16, 24))}


def test_two_pipelines_interleaved():
    def forward(tiny, timestep, size):
        sample = torch.linspace(-1, 1, 4 * size[0] * size[1]).view(1, 4, *size)
        context = torch.linspace(0, 1, 7 * 8).view(1, 7, 8)
        with torch.no_grad():
            return tiny.model(sample, timestep, context, return_dict=False)[0]

    one, two = Tiny("sd", seed=1), Tiny("sd", seed=2)
    plan = [(one, 900, (12, 16)), (two, 900, (8, 11)), (one, 500, (5, 9)), (two, 100, (12, 16))]
    separate = []
    for call in plan:
        with apply(call[0].model, LOCAL):
            separate.append(forward(*call))
    with apply(one.model, LOCAL), apply(two.model, LOCAL):
        for call, want in zip(plan, separate, strict=True):
            assert torch.equal(forward(*call), want)


def test_model_without_its_pipeline(flux):
    with apply(flux.pipe, LOCAL):
        want = flux()
    with apply(flux.model, LOCAL):
        assert torch.equal(flux(), want)


def test_copied_pipeline_keeps_its_operator(flux):
    with apply(flux.pipe, LOCAL, steps=(0.5, 1)):
        want = flux(steps=4)
        twin = Tiny("flux")
        twin.pipe = copy.deepcopy(flux.pipe)
    assert not torch.equal(flux(steps=4), want)
    assert torch.equal(twin(steps=4), want)


def test_pickled_model_keeps_its_operator(flux):
    twin = Tiny("flux", seed=3)
    with apply(flux.model, LOCAL):
        want = flux()
        twin.pipe.transformer = pickle.loads(pickle.dumps(flux.model))
    for part in ("vae", "text_encoder", "text_encoder_2"):
        setattr(twin.pipe, part, getattr(flux.pipe, part))
    assert torch.equal(twin(), want)


# undo


def snapshot(model):
    processors = dict(model.attn_processors)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return processors, weights, dict(model._forward_pre_hooks), dict(model._forward_hooks)


def same(before, after):
    processors, weights, *hooks = before
    return (
        all(after[0][name] is processor for name, processor in processors.items())
        and all(torch.equal(after[1][name], value) for name, value in weights.items())
        and weights.keys() == after[1].keys()
        and hooks == list(after[2:])
    )


def test_remove_restores_everything(tiny):
    before, want = snapshot(tiny.model), tiny()
    handle = apply(tiny.pipe, LOCAL)
    assert not same(before, snapshot(tiny.model))
    tiny()
    handle.remove()
    assert same(before, snapshot(tiny.model))
    handle.remove()
    assert same(before, snapshot(tiny.model))
    assert torch.equal(tiny(), want)


def stop(pipe, step, timestep, arguments):
    raise KeyboardInterrupt


def test_a_paused_handle_is_the_stock_pipeline(flux):
    want = flux()
    with apply(flux.pipe, LocalAttnProcessor(radius=2)) as handle:
        local = flux()
        with handle.paused():
            assert torch.equal(flux(), want)
        with pytest.raises(KeyError), handle.paused():
            raise KeyError
        assert torch.equal(flux(), local)
    assert torch.equal(flux(), want)
    assert not torch.equal(local, want)


def test_exception_inside_a_call(flux):
    before, want = snapshot(flux.model), flux()
    with apply(flux.pipe, LOCAL):
        local = flux()
        with pytest.raises(KeyboardInterrupt):
            flux(callback_on_step_end=stop)
        assert torch.equal(flux(), local)
    assert same(before, snapshot(flux.model))
    assert torch.equal(flux(), want)


def test_exception_that_leaves_the_context(flux):
    before, want = snapshot(flux.model), flux()
    handle = apply(flux.pipe, LOCAL)
    with pytest.raises(KeyboardInterrupt), handle:
        flux(callback_on_step_end=stop)
    assert same(before, snapshot(flux.model))
    assert torch.equal(flux(), want)
    assert [row.forwards for row in handle.report().layers] == [1, 1]


def test_settings_made_meanwhile_are_kept(flux):
    processor = flux.model.transformer_blocks[0].attn.processor
    with apply(flux.pipe, LOCAL):
        flux.model.set_attention_backend("native")
    assert processor._attention_backend is not None
    assert not hasattr(processor, "attend")
    flux.model.reset_attention_backend()


def test_processor_replaced_meanwhile(sd):
    before = snapshot(sd.model)
    attention = sd.model.mid_block.attentions[0].transformer_blocks[0].attn1
    mine, stock = AttnProcessor2_0(), attention.processor
    handle = apply(sd.pipe, LOCAL)
    attention.set_processor(mine)
    sd()
    row = rows_of(handle, layer="mid_block.attentions.0.transformer_blocks.0.attn1")[0]
    assert (row.operator, row.forwards) == ("-", 0)
    assert "replaced by AttnProcessor2_0" in row.reason
    handle.remove()
    assert attention.processor is mine
    attention.set_processor(stock)
    assert same(before, snapshot(sd.model))


def test_second_apply_is_refused(flux):
    with apply(flux.pipe, LOCAL):
        want = flux()
        with pytest.raises(ValueError, match="already runs a foveate operator; call remove"):
            apply(flux.model, LOCAL)
        assert torch.equal(flux(), want)
    with apply(flux.pipe, LOCAL):
        assert torch.equal(flux(), want)


@pytest.mark.parametrize("duplicate", [lambda pipe: pipe, copy.deepcopy], ids=["own", "copy"])
@pytest.mark.parametrize("inner", [LOCAL, BroadcastAttnProcessor(LOCAL, window=(0, 1))])
def test_remove_without_a_handle(inner, duplicate):
    tiny = Tiny("flux")
    dense = tiny()
    apply(tiny.pipe, inner)
    local, original = tiny(), tiny.pipe
    tiny.pipe = duplicate(original)
    remove(tiny.pipe)
    assert {type(p) for p in tiny.model.attn_processors.values()} == {FluxAttnProcessor}
    assert not tiny.model._forward_hooks
    assert not tiny.model._forward_pre_hooks
    assert torch.equal(tiny(), dense)
    remove(tiny.pipe)
    if tiny.pipe is not original:
        tiny.pipe = original
        assert torch.equal(tiny(), local)


def test_remove_from_a_pickled_model(flux):
    with apply(flux.model, LOCAL) as handle:
        twin = pickle.loads(pickle.dumps(flux.model))
        remove(twin)
        assert {type(p) for p in twin.attn_processors.values()} == {FluxAttnProcessor}
        assert not twin._forward_hooks
        remove(flux.model)
        assert {type(p) for p in flux.model.attn_processors.values()} == {FluxAttnProcessor}
        assert len(handle.report().layers) == 2


def test_second_apply_is_refused_where_fusing_took_the_first_off():
    tiny = Tiny("sd")
    apply(tiny.pipe, LOCAL)
    tiny.pipe.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"already runs .* foveate.remove\(pipe\)"):
        apply(tiny.pipe, LOCAL)
    remove(tiny.pipe)
    with apply(tiny.pipe, LOCAL):
        tiny()


def test_apply_after_the_stock_way_is_refused():
    tiny = Tiny("flux")
    tiny.model.set_attn_processor(LocalAttnProcessor(radius=3))
    with pytest.raises(ValueError, match="put there by set_attn_processor"):
        apply(tiny.pipe, LOCAL)


# which layers, when


def test_mapping_and_layers(sd):
    rules = {"down_blocks.0.*": LOCAL, "*.attn1": SoftmaxAttnProcessor()}
    with apply(sd.pipe, rules, layers=["down_blocks.*", "mid_block.*attn1.processor"]) as handle:
        sd()
    ran = {row.layer: row.operator for row in handle.report().layers if row.forwards}
    assert ran == {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1": "local",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1": "softmax",
        "mid_block.attentions.0.transformer_blocks.0.attn1": "softmax",
    }
    assert {row.reason for row in rows_of(handle, kind="cross")} == {"cross-attention"}
    assert len(rows_of(handle, kind="self", reason="not selected")) == 4


def test_min_tokens(sd):
    probe = GainAttnProcessor()
    with apply(sd.pipe, probe, min_tokens=100) as handle:
        sd()
    assert {layout.grid for layout in probe.calls} == {(1, 12, 16)}
    row = rows_of(handle, layer="mid_block.attentions.0.transformer_blocks.0.attn1")[0]
    assert (row.operator, row.dense_forwards) == ("dense", 2)
    assert row.reason == "fewer than min_tokens=100 (2x)"


def test_steps_window(tiny):
    want = tiny(steps=4)
    probe = GainAttnProcessor(gain=0.0)
    with apply(tiny.pipe, probe, steps=(0.5, 1)) as handle:
        seen = []
        tiny(steps=4, callback_on_step_end=lambda p, i, t, kw: seen.append(len(probe.calls)) or {})
        changed = tiny(steps=4)
    assert seen[:2] == [0, 0]
    assert 0 < seen[2] < seen[3]
    assert not torch.equal(changed, want)
    row = next(row for row in handle.report().layers if row.kind != "cross")
    assert (row.operator, row.forwards, row.dense_forwards) == ("gain+dense", 2, 2)
    assert row.reason == "outside steps=(0.5, 1) (2x)"
    with apply(tiny.pipe, probe, steps=(0, 0.25)):
        assert not torch.equal(tiny(steps=4), changed)


def test_the_schedule_outlives_the_pipeline():
    """`from_pipe` makes a pipeline of the same parts, and people drop the first."""
    tiny, probe = Tiny("flux"), GainAttnProcessor()
    tiny.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    apply(tiny.pipe, probe, steps=(0.5, 1))
    tiny(steps=4)
    calls = len(probe.calls)
    tiny.pipe = FluxPipeline.from_pipe(tiny.pipe)
    gc.collect()
    tiny.pipe.set_progress_bar_config(disable=True)
    tiny(steps=4)
    assert len(probe.calls) == 2 * calls


def test_what_holds_a_model_but_no_scheduler(sd):
    class Holder:
        unet = sd.model

    holder = Holder()
    with apply(holder, LOCAL, steps=(0.5, 1)) as handle:
        sd()
    assert rows_of(handle, kind="self", operator="local+dense")


# no silence


def test_layer_without_a_call_site(caplog):
    sd = Tiny("sd")
    want = sd()
    sd.model.set_attention_slice(1)
    sliced = dict(sd.model.attn_processors)
    with (
        caplog.at_level(logging.WARNING, LOGGER),
        apply(sd.pipe, ZeroAttnProcessor()) as handle,
    ):
        assert torch.allclose(sd(), want, atol=1e-5)
    assert len(caplog.records) == 1
    assert "SlicedAttnProcessor has no softmax-attention call" in caplog.text
    rows = rows_of(handle, kind="self")
    assert len(rows) == 7
    assert all(row.operator == "dense" and "SlicedAttn" in row.reason for row in rows)
    with pytest.raises(NotImplementedError, match=r"attn1: SlicedAttnProcessor has no softmax"):
        apply(sd.pipe, LOCAL, strict=True)
    assert all(sd.model.attn_processors[name] is p for name, p in sliced.items())


def raster_ids(height, width, image=0):
    return torch.cartesian_prod(
        torch.tensor([float(image)]), torch.arange(float(height)), torch.arange(float(width))
    )


def flux_forward(model, ids, text=7, **arguments):
    generator = torch.Generator().manual_seed(0)
    return model(
        hidden_states=torch.randn(1, len(ids), 4, generator=generator),
        encoder_hidden_states=torch.randn(1, text, 32, generator=generator),
        pooled_projections=torch.randn(1, 32, generator=generator),
        timestep=torch.tensor([0.5]),
        img_ids=ids,
        txt_ids=torch.zeros(text, 3),
        return_dict=False,
        **arguments,
    )[0]


@torch.no_grad()
def test_unknown_grid_runs_dense_and_says_so(flux, caplog):
    ids = raster_ids(4, 6)[torch.randperm(24)]
    want = flux_forward(flux.model, ids)
    with (
        caplog.at_level(logging.WARNING, LOGGER),
        apply(flux.model, ZeroAttnProcessor()) as handle,
    ):
        for _ in range(3):
            assert torch.equal(flux_forward(flux.model, ids), want)
    assert len(caplog.records) == 1
    assert "31 tokens fit no grid of this forward" in caplog.text
    rows = rows_of(handle, operator="dense", dense_forwards=3)
    assert [row.reason for row in rows] == ["31 tokens fit no grid of this forward (3x)"] * 2
    with (
        pytest.raises(NotImplementedError, match="transformer_blocks.0.attn: 31 tokens fit no"),
        apply(flux.model, ZeroAttnProcessor(), strict=True),
    ):
        flux_forward(flux.model, ids)


def test_mask_runs_dense_and_says_so(sd, caplog):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    mask = torch.randn(1, 1, 192)
    hook = sd.model.get_submodule(name).register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
    )
    sample, context = torch.randn(1, 4, 12, 16), torch.randn(1, 7, 8)
    with torch.no_grad():
        want = sd.model(sample, 500, context).sample
        with (
            caplog.at_level(logging.WARNING, LOGGER),
            apply(sd.model, ZeroAttnProcessor(), layers=name) as handle,
        ):
            assert torch.equal(sd.model(sample, 500, context).sample, want)
    hook.remove()
    assert rows_of(handle, layer=name)[0].reason == "the call carries an attention mask (1x)"
    assert f"{name} runs dense: the call carries an attention mask" in caplog.text


@torch.no_grad()
def test_reference_image_is_an_extra_segment(flux):
    ids = torch.cat((raster_ids(4, 6), raster_ids(3, 6, image=1)))
    want = flux_forward(flux.model, ids)
    with apply(flux.model, SoftmaxAttnProcessor()) as handle:
        assert torch.equal(flux_forward(flux.model, ids), want)
    assert [row.tokens for row in rows_of(handle, operator="softmax")] == [49, 49]
    with apply(flux.model, LocalAttnProcessor(radius=64)):
        assert torch.allclose(flux_forward(flux.model, ids), want, atol=1e-5)
    with apply(flux.model, LocalAttnProcessor(radius=2)):
        assert not torch.allclose(flux_forward(flux.model, ids), want, atol=1e-5)


def test_forward_cut_short_is_not_counted(flux):
    ids, shuffled = raster_ids(4, 6), raster_ids(4, 6)[torch.randperm(24)]
    norm = flux.model.norm_out.register_forward_pre_hook(lambda *_: stop(*[None] * 4))
    with apply(flux.model, SoftmaxAttnProcessor()) as handle:
        with pytest.raises(KeyboardInterrupt):
            flux_forward(flux.model, ids)
        norm.remove()
        flux_forward(flux.model, shuffled)
    rows = handle.report().layers
    assert [(row.operator, row.forwards, row.dense_forwards) for row in rows] == [
        ("dense", 0, 1)
    ] * 2


def test_report_is_of_the_last_run(flux):
    with apply(flux.pipe, LOCAL) as handle:
        assert {row.operator for row in handle.report().layers} == {"-"}
        flux(flux.sizes[1], steps=3)
        flux(flux.sizes[0], steps=2)
        report = handle.report()
    assert report.forwards == 2
    assert [(row.forwards, row.tokens) for row in report.layers] == [(2, 112)] * 2
    assert handle.report() == report
    shown = str(report)
    assert "LocalAttnProcessor(radius=3): ran in 2 of 2 layers, 2 forwards" in shown
    first, second = report.layers
    assert shown.splitlines()[2].startswith(f"{first.layer} and 1 more  ")
    assert len(shown.splitlines()) == 3
    other = replace(report, layers=(first, replace(second, forwards=1)))
    assert str(other).splitlines()[3].startswith(f"{second.layer}  ")
    keys = local_keys(TokenLayout(text=16, grid=(1, 8, 12)), 3)
    assert {row.keys for row in report.layers} == {keys}
    assert f"{keys.visited:.1f}" in shown


def test_report_as_json(sd):
    with apply(sd.pipe, LOCAL, layers="mid_block.*", steps=(0, 0.5)) as handle:
        sd()
    report = handle.report()
    fields = json.loads(report.to_json())
    assert (fields["processors"], fields["forwards"]) == (["LocalAttnProcessor(radius=3)"], 2)
    assert len(fields["layers"]) == len(report.layers)
    for shown, row in zip(fields["layers"], report.layers, strict=True):
        assert (shown["layer"], shown["reason"]) == (row.layer, row.reason)
        assert shown["keys"] == (None if row.keys is None else row.keys._asdict())
    assert {"needed", "visited"} == set(next(r["keys"] for r in fields["layers"] if r["keys"]))


def test_a_processor_replaced_during_the_run_only(sd):
    """As perturbed-attention guidance does."""
    attention = sd.model.mid_block.attentions[0].transformer_blocks[0].attn1
    with apply(sd.pipe, LOCAL) as handle:
        ours = attention.processor
        attention.set_processor(AttnProcessor2_0())
        sd()
        attention.set_processor(ours)
        row = rows_of(handle, layer="mid_block.attentions.0.transformer_blocks.0.attn1")[0]
    assert row.reason.endswith("or its processor was replaced during the run")


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "blocks.7*"}, "'blocks.7.*' matches no attention layer; near: "),
        ({"layers": "*.attn2"}, "matches only cross layers"),
        ({"layers": []}, "no layer matches both"),
        ({"min_tokens": -1}, "min_tokens must be an integer >= 0, got -1"),
        ({"steps": (0.5, 0.2)}, "steps must be .* got .0.5, 0.2."),
        ({"steps": (0, 50)}, "steps must be .* got .0, 50."),
        ({"steps": (0.5,)}, "steps must be"),
        ({"steps": 0.5}, "steps must be .* got 0.5"),
        ({"steps": ("a", "b")}, "steps must be .* got .'a', 'b'."),
        ({"steps": (0, None)}, "steps must be .* got .0, None."),
        ({"layers": 5}, "layers must be a pattern of layer names or a list of them, got 5"),
        ({"layers": [5]}, "a pattern of layer names must be a string, got 5"),
        ({"family": "flux"}, "family must be a foveate.Family .* got 'flux'"),
    ],
    ids=str,
)
def test_bad_options(sd, options, message):
    with pytest.raises(ValueError, match=message):
        apply(sd.pipe, LOCAL, **options)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (LocalAttnProcessor, "expected a foveate processor object"),
        (AttnProcessor2_0(), "expected a foveate processor object"),
        ({}, "mapping of patterns to processors is empty"),
        ({"*": FluxAttnProcessor()}, "expected a foveate processor object"),
        ({"down_blocks.*": LOCAL, "nowhere": LOCAL}, "'nowhere' matches no attention layer"),
        ({5: LOCAL}, "a pattern of layer names must be a string, got 5"),
        ({"*": LOCAL, "mid*": LOCAL}, r"'mid\*' never applies: '\*' comes first"),
    ],
)
def test_bad_processors(sd, processor, message):
    with pytest.raises(ValueError, match=message):
        apply(sd.pipe, processor)


def test_near_names_are_near(sd):
    with pytest.raises(ValueError, match="near: mid_block.attentions.0.transformer_blocks.0.attn1"):
        apply(sd.pipe, {"midblock.attentions.0.transformer_blocks.0.attn1": LOCAL})


def test_unknown_targets(sd):
    with pytest.raises(ValueError, match="pipeline or its denoiser, got str"):
        apply("a pipeline", LOCAL)
    with pytest.raises(NotImplementedError, match="token layout of AutoencoderKL"):
        apply(sd.pipe.vae, LOCAL)


# neighbours


@pytest.mark.parametrize("first", ["fuse", "apply"])
def test_fused_projections_on_flux(first):
    tiny = Tiny("flux")
    with apply(tiny.pipe, LOCAL):
        want = tiny()
    if first == "fuse":
        tiny.model.fuse_qkv_projections()
    with apply(tiny.pipe, LOCAL) as handle:
        tiny.model.fuse_qkv_projections()
        assert torch.allclose(tiny(), want, atol=1e-5)
        assert len(rows_of(handle, operator="local", forwards=2)) == 2


def test_fusing_a_unet_first_keeps_the_operator():
    tiny = Tiny("sd")
    with apply(tiny.pipe, LOCAL):
        want = tiny()
    tiny.pipe.fuse_qkv_projections()
    with apply(tiny.pipe, LOCAL) as handle:
        assert torch.allclose(tiny(), want, atol=1e-5)
        assert len(rows_of(handle, operator="local", forwards=2)) == 7


def test_fusing_a_unet_afterwards_is_reported():
    tiny = Tiny("sd")
    dense = tiny()
    handle = apply(tiny.pipe, LOCAL)
    tiny.pipe.fuse_qkv_projections()
    assert torch.allclose(tiny(), dense, atol=1e-5)
    rows = rows_of(handle, kind="self")
    assert all("replaced by FusedAttnProcessor2_0" in row.reason for row in rows)
    handle.remove()
    # unfusing puts our copies back; removed, they are the stock processor
    tiny.pipe.unfuse_qkv_projections()
    assert torch.allclose(tiny(), dense, atol=1e-5)


@torch.no_grad()
def test_ip_adapter_on_flux():
    model = Tiny("flux").model
    attention = model.transformer_blocks[0].attn
    adapter = FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=32)
    attention.set_processor(adapter)
    names = set(model.state_dict())

    def forward():
        prompts = [torch.linspace(-1, 1, 4 * 32).view(1, 4, 32)]
        return flux_forward(
            model, raster_ids(4, 6), joint_attention_kwargs={"ip_hidden_states": prompts}
        )

    want = forward()
    with apply(model, SoftmaxAttnProcessor()) as handle:
        assert torch.equal(forward(), want)
        assert set(model.state_dict()) == names
        assert isinstance(attention.processor, FluxIPAdapterAttnProcessor)
        attention.processor.scale = [0.0]
        assert not torch.equal(forward(), want)
    row = rows_of(handle, layer="transformer_blocks.0.attn")[0]
    assert (row.operator, row.seen, row.forwards, row.dense_forwards) == ("softmax+dense", 2, 2, 2)
    assert "2/2" in next(line for line in str(handle.report()).splitlines() if row.layer in line)
    assert row.reason == "queries and keys differ in number (2x)"
    assert attention.processor is adapter
    assert adapter.scale == [0.0]


def test_gradients_pass_and_checkpointing_agrees(flux):
    def gradient():
        flux.model.zero_grad()
        flux_forward(flux.model, raster_ids(4, 6)).square().sum().backward()
        return flux.model.x_embedder.weight.grad.clone()

    with apply(flux.model, LOCAL):
        want = gradient()
    flux.model.train().enable_gradient_checkpointing()
    # anew: the very first forward looks at the operator's output, its recomputation does not
    with apply(flux.model, LOCAL):
        again = gradient()
    flux.model.eval().disable_gradient_checkpointing()
    flux.model.zero_grad()
    assert want.abs().sum() > 0
    assert torch.allclose(again, want, rtol=1e-4, atol=1e-6)


# torch.compile


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def test_unet_is_one_graph(counter):
    tiny = Tiny("sd")
    with apply(tiny.pipe, LOCAL, layers="*_blocks.1.*") as handle:
        want = tiny(steps=1)
        tiny.model.compile(backend=counter, fullgraph=True)
        assert torch.allclose(tiny(steps=1), want, atol=1e-5)
        assert len(rows_of(handle, operator="local", forwards=1)) == 3
    assert counter.frame_count == 1


def test_flux_is_one_graph_per_size(counter):
    tiny = Tiny("flux")
    first, second = tiny.sizes
    with apply(tiny.pipe, LOCAL) as handle:
        want = {size: tiny(size, steps=1) for size in tiny.sizes}
        tiny.model.compile(backend=counter, fullgraph=True)
        for size, graphs in ((first, 1), (second, 2), (first, 2)):
            assert torch.allclose(tiny(size, steps=1), want[size], atol=1e-5)
            assert counter.frame_count == graphs
            assert len(rows_of(handle, operator="local", forwards=1)) == 2


def test_foveated_is_one_graph(counter):
    tiny = Tiny("flux")
    with apply(tiny.pipe, FoveatedAttnProcessor(radius=2, pool=2)):
        want = tiny(steps=1)
        tiny.model.compile(backend=counter, fullgraph=True)
        assert torch.allclose(tiny(steps=1), want, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_unet_size_change_with_symbolic_shapes(counter):
    tiny = Tiny("sd")
    first, second = tiny.sizes
    with apply(tiny.pipe, LOCAL):
        want = {size: tiny(size) for size in tiny.sizes}
        tiny.model.compile(backend=counter, fullgraph=True)
        for size in (first, second, first):
            assert torch.allclose(tiny(size), want[size], atol=1e-5)
    assert counter.frame_count == 2


def test_compiled_module_is_unwrapped(counter):
    tiny = Tiny("flux")
    with apply(tiny.pipe, LOCAL):
        want = tiny()
    tiny.pipe.transformer = torch.compile(tiny.pipe.transformer, backend=counter, fullgraph=True)
    dense = tiny()
    with apply(tiny.pipe, LOCAL):
        assert torch.allclose(tiny(), want, atol=1e-5)
    assert torch.allclose(tiny(), dense, atol=1e-6)


def test_step_window_compiles_to_two_graphs(counter):
    tiny = Tiny("flux")
    with apply(tiny.pipe, LOCAL, steps=(0, 0.5)) as handle:
        want = tiny(steps=4)
        tiny.model.compile(backend=counter, fullgraph=True)
        assert torch.allclose(tiny(steps=4), want, atol=1e-5)
        assert [(row.forwards, row.dense_forwards) for row in handle.report().layers] == [
            (2, 2)
        ] * 2
    assert counter.frame_count == 2


def test_repeated_blocks_share_their_graphs(counter):
    tiny = Tiny("flux", num_layers=12, num_single_layers=12)
    with apply(tiny.pipe, LOCAL) as handle:
        want = tiny()
        tiny.model.compile_repeated_blocks(backend=counter, fullgraph=True)
        assert torch.allclose(tiny(), want, atol=1e-5)
        assert len(rows_of(handle, operator="local", forwards=2)) == 24
    assert counter.frame_count <= 3
