"""foveate.broadcast: exact by construction, for every way a pipeline drives its denoiser."""

import copy
import gc
import logging

import diffusers
import pytest
import torch

import foveate
from broadcast_pipelines import Latents
from foveate.attn_processors.broadcast import FractionPlan, PabPlan, TablePlan, broadcast
from foveate.attn_processors.broadcast.position import Position
from foveate.attn_processors.broadcast.schedule import read_schedule
from foveate.attn_processors.broadcast.wrapper import Broadcasting
from foveate.attn_processors.layouts import attention_layers
from replay import replay
from tiny_pipelines import Tiny

EVERY = FractionPlan(every=1)
REUSE = FractionPlan(every=3, arm="reuse")
FORECAST = FractionPlan(every=3)
STEPS = 10
REUSE_ROW, FORECAST_ROW = "##==#==###", "##~~#~~###"
LATENTS = ["latte", "cogvideox", "wan", "pixart"]
TINY = ["flux", "sd", "sd3"]


class _Same:
    """A Tiny that stops at the latent, called as a Latents is."""

    def __init__(self, name):
        self.tiny = Tiny(name)
        self.pipe, self.model = self.tiny.pipe, self.tiny.model

    @torch.no_grad()
    def __call__(self, steps=STEPS, seed=0, size=None, **arguments):
        height, width = self.tiny.sizes[0] if size is None else size
        return self.pipe(
            **{**self.tiny.arguments, **arguments},
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images


def load(name, **options):
    return Latents(name, **options) if name in LATENTS else _Same(name)


@pytest.fixture(scope="module", params=[*LATENTS, *TINY])
def family(request):
    return load(request.param)


@pytest.fixture(scope="module")
def flux():
    return load("flux")


@pytest.fixture(scope="module")
def pixart():
    return load("pixart")


@pytest.fixture(scope="module")
def wan():
    return load("wan")


@pytest.fixture(scope="module")
def sd():
    return load("sd")


@pytest.fixture(autouse=True)
def nothing_left(request):
    """Every test must leave the shared pipelines as they were."""
    yield
    for name in ("family", "flux", "pixart", "wan", "sd"):
        if name in request.fixturenames:
            model = request.getfixturevalue(name).model
            layers = attention_layers(model).values()
            assert not any(isinstance(m.processor, Broadcasting) for m in layers)
            assert not model._forward_pre_hooks
            assert not model._forward_hooks


def rows_of(handle):
    return {row.layer: row.row for row in handle.report().layers if not row.reason}


# T1


def test_t1_compute_all_is_bit_equal(family):
    want = family()
    with broadcast(family.pipe, EVERY) as handle:
        assert torch.equal(family(), want)
        rows = rows_of(handle)
    assert set(rows.values()) == {"#" * STEPS}
    assert handle.report().peak_bytes == 0
    assert torch.equal(family(), want)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_t1_compute_all_is_bit_equal_on_the_embedded_models(name):
    from foveate.pipelines.shapes.load import MODELS

    pipe = foveate.load_shapes(name)
    pipe.set_progress_bar_config(disable=True)

    def run():
        generator = torch.Generator().manual_seed(0)
        prompt = "a red circle on a teal background"
        called = {"output_type": "latent", "num_inference_steps": 8, **MODELS[name].call}
        return pipe(prompt, generator=generator, **called).images

    want = run()
    with broadcast(pipe, FractionPlan(every=1)):
        assert torch.equal(run(), want)
    with broadcast(pipe, FractionPlan(every=2)):
        assert not torch.equal(run(), want)


# T2


def closed_form_fraction(n, every, start, end):
    row, inside = "", 0
    for i in range(n):
        in_window = n >= 8 and start <= i / n < end and 0 < i < n - 2
        row += "=" if in_window and inside % every else "#"
        inside += in_window
    return row


def closed_form_pab(timesteps, every, low, high):
    skips = [i % every != 0 and low < int(t) < high for i, t in enumerate(timesteps)]
    return "".join("=" if skip else "#" for skip in skips)


@pytest.mark.parametrize("n", [4, 8, 20, 50])
def test_t2_rows_equal_the_closed_form(pixart, n):
    with broadcast(pixart.pipe, FractionPlan(every=3, cross=5, arm="reuse")) as handle:
        pixart(n)
        for row in handle.report().layers:
            every = {"spatial": 3, "cross": 5}[row.kind]
            assert row.row == closed_form_fraction(n, every, 0.1, 0.85)
    with broadcast(pixart.pipe, PabPlan(spatial=2, cross=6, window=(100, 850))) as handle:
        pixart(n)
        timesteps = pixart.pipe.scheduler.timesteps
        for row in handle.report().layers:
            every = {"spatial": 2, "cross": 6}[row.kind]
            assert row.row == closed_form_pab(timesteps, every, 100, 850)
            assert row.computed == row.row.count("#")


@pytest.mark.parametrize("window", [5, None, (850, 100), (1, 2, 3)])
def test_t2_a_window_is_two_timesteps(window):
    with pytest.raises(ValueError, match="window must be timesteps .low, high. with low < high"):
        PabPlan(window=window)


def test_t2_presets_are_the_published_ones():
    latte = PabPlan.preset("latte")
    assert (latte.spatial, latte.temporal, latte.cross, latte.window) == (2, 3, 6, (100, 800))
    with pytest.raises(ValueError, match="presets for open-sora, .* got 'sdxl'"):
        PabPlan.preset("sdxl")


# T3


@pytest.mark.parametrize(
    ("plan", "row"), [(REUSE, REUSE_ROW), (FORECAST, FORECAST_ROW)], ids=["reuse", "forecast"]
)
@pytest.mark.parametrize("name", ["latte", "cogvideox", "flux", "sd", "sd3", "pixart"])
def test_t3_equals_an_explicit_loop(name, plan, row):
    family = load(name)
    with replay(family.model, row, lambda: family.pipe.scheduler.timesteps):
        want = family()
    assert not torch.equal(family(), want)
    with broadcast(family.pipe, plan) as handle:
        assert torch.equal(family(), want)
        assert set(rows_of(handle).values()) == {row}


def test_t3_rows_may_differ_by_layer(pixart):
    names = list(attention_layers(pixart.model))
    rows = dict(zip(names, ["##=#==####", "#=##~#~#~#", "##########", "#====#===#"], strict=True))
    with replay(pixart.model, rows, lambda: pixart.pipe.scheduler.timesteps):
        want = pixart()
    with broadcast(pixart.pipe, TablePlan(rows)) as handle:
        assert torch.equal(pixart(), want)
        assert rows_of(handle) == rows


# T4


class Loop:
    """Drives a bare Wan transformer through a schedule; the latents are given, not denoised."""

    def __init__(self, model, steps=STEPS):
        self.model = model
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(1)
        self.latents = torch.randn(steps, 1, 16, 2, 4, 6, generator=generator)
        self.texts = torch.randn(3, 1, 7, 32, generator=generator)

    @torch.no_grad()
    def __call__(self, i, *texts, latent=None):
        """Outputs at step i, one forward for each text."""
        latent = self.latents[i] if latent is None else latent
        t = self.scheduler.timesteps[i].expand(1)
        return [self.forward(latent, t, self.texts[text]) for text in texts]

    @torch.no_grad()
    def forward(self, latent, t, text):
        return self.model(
            hidden_states=latent, timestep=t, encoder_hidden_states=text, return_dict=False
        )[0]


@pytest.mark.parametrize("plan", [REUSE, FORECAST], ids=["reuse", "forecast"])
def test_t4_each_branch_is_as_if_alone(wan, plan):
    loop = Loop(wan.model)
    with broadcast(wan.model, plan, scheduler=loop.scheduler):
        both = [loop(i, 0, 1) for i in range(STEPS)]
    for text in (0, 1):
        with broadcast(wan.model, plan, scheduler=loop.scheduler):
            alone = [loop(i, text)[0] for i in range(STEPS)]
        assert all(torch.equal(b[text], a) for b, a in zip(both, alone, strict=True))
    assert all((cond - uncond).abs().max() > 0 for cond, uncond in both)


@torch.no_grad()
def test_t4_batched_guidance_equals_two_forwards(wan):
    loop = Loop(wan.model)
    with broadcast(wan.model, FORECAST, scheduler=loop.scheduler):
        split = [loop(i, 0, 1) for i in range(STEPS)]
    texts = loop.texts[:2, 0]
    with broadcast(wan.model, FORECAST, scheduler=loop.scheduler) as handle:
        for i in range(STEPS):
            t = loop.scheduler.timesteps[i].expand(2)
            batched = loop.forward(loop.latents[i].expand(2, -1, -1, -1, -1), t, texts)
            assert torch.allclose(batched, torch.cat(split[i]), atol=1e-5)
        assert set(rows_of(handle).values()) == {FORECAST_ROW}


def test_t4_guidance_by_two_forwards_in_a_pipeline(wan):
    outputs = []
    hook = wan.model.register_forward_hook(lambda m, a, out: outputs.append(out[0].clone()))
    with broadcast(wan.pipe, REUSE) as handle:
        guided = wan()
        report = handle.report()
    hook.remove()
    assert report.branches == 2
    assert report.forwards == 2 * report.evaluations == 2 * STEPS
    assert {row.row for row in report.layers} == {REUSE_ROW}
    pairs = zip(outputs[::2], outputs[1::2], strict=True)
    assert all((cond - uncond).abs().max() > 0 for cond, uncond in pairs)
    assert not torch.equal(guided, wan(guidance_scale=1.0))


# T5


@pytest.mark.parametrize(
    "first",
    [
        {"prompt": "a dog"},
        {"seed": 7},
        {"prompt": ["a dog", "a bird", "a cow"]},
        {"height": 24, "width": 16},
        {"steps": 9},
        {"guidance_scale": 1.0},
    ],
    ids=str,
)
def test_t5_nothing_leaks_into_the_next_run(pixart, first):
    with broadcast(pixart.pipe, FORECAST):
        want = pixart()
    with broadcast(pixart.pipe, FORECAST) as handle:
        pixart(**first)
        assert torch.equal(pixart(), want)
        gc.collect()
        assert torch.equal(pixart(), want)
        assert handle.report().held_bytes == 0


@pytest.mark.parametrize("step", range(STEPS))
def test_t5_nothing_leaks_from_an_interrupted_run(pixart, step):
    with broadcast(pixart.pipe, FORECAST):
        want = pixart()

    def stop(i, t, latents):
        if i == step:
            raise KeyboardInterrupt

    with broadcast(pixart.pipe, FORECAST) as handle:
        with pytest.raises(KeyboardInterrupt):
            pixart(seed=3, callback=stop)
        assert torch.equal(pixart(), want)
        assert handle.report().held_bytes == 0


def test_t5_nothing_leaks_from_a_forward_cut_short(pixart):
    with broadcast(pixart.pipe, FORECAST) as handle:
        want = pixart()
        hook = pixart.model.proj_out.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pixart(seed=3)
        hook.remove()
        assert torch.equal(pixart(), want)
        assert handle.report().forwards == STEPS


def test_t5_part_of_the_schedule(sd):
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**sd.pipe.components)
    img2img.set_progress_bar_config(disable=True)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, 48, 64, generator=generator)
        called = {"strength": 0.55, "num_inference_steps": 20, "output_type": "latent"}
        with torch.no_grad():
            return img2img("a cat", image, generator=generator, **called).images

    with broadcast(img2img, REUSE) as handle:
        want = run(0)
        rows = rows_of(handle)
    assert set(rows.values()) == {closed_form_fraction(11, 3, 0.1, 0.85)}
    with broadcast(img2img, REUSE):
        run(1)
        assert torch.equal(run(0), want)


def test_t5_a_short_part_of_the_schedule_is_a_short_run(sd):
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**sd.pipe.components)
    img2img.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 48, 64)
    called = {"strength": 0.35, "num_inference_steps": 20, "output_type": "latent"}
    for plan in (REUSE, PabPlan(cross=2, window=(-1, 1000))):
        with broadcast(img2img, plan) as handle, torch.no_grad():
            img2img("a cat", image, **called)
            report = handle.report()
        expected = "#######" if plan is REUSE else "#=#=#=#"
        assert {row.row for row in report.layers} == {expected}
        assert ("a run of 7 evaluations" in "".join(report.notes)) == (plan is REUSE)


def test_t5_nothing_is_held_by_the_layers_after_a_forward(pixart):
    """A last evaluation that reuses leaves what it read to nobody."""
    rows = dict.fromkeys(attention_layers(pixart.model), "#" * (STEPS - 1) + "=")
    with broadcast(pixart.pipe, TablePlan(rows)) as handle:
        pixart()
        (part,) = handle._parts
        gates = part.controller.gates
        assert {gate.recent for gate in gates} == {gate.kept for gate in gates} == {None}
        hook = pixart.model.proj_out.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pixart()
        hook.remove()
        assert any(gate.kept is not None for gate in gates)
        handle.reset()
        assert {gate.kept for gate in gates} == {None}


@pytest.mark.parametrize(
    ("scheduler", "options", "is_noisy"),
    [
        ("CogVideoXDPMScheduler", {}, True),
        ("SASolverScheduler", {}, True),
        ("UnCLIPScheduler", {}, True),
        ("ScoreSdeVeScheduler", {}, True),
        ("EulerAncestralDiscreteScheduler", {}, True),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, True),
        ("DPMSolverMultistepScheduler", {}, False),
        ("CogVideoXDDIMScheduler", {}, False),
        ("FlowMatchEulerDiscreteScheduler", {}, False),
    ],
)
def test_t6_schedulers_that_add_noise(scheduler, options, is_noisy):
    scheduler = getattr(diffusers, scheduler)(**options)
    scheduler.set_timesteps(10)
    assert read_schedule(scheduler).is_noisy == is_noisy


# T6


SCHEDULERS = [
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "DDIMScheduler",
]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_t6_evaluations_of_every_scheduler(pixart, name):
    scheduler = pixart.pipe.scheduler
    pixart.pipe.scheduler = getattr(diffusers, name)()
    forwards = []
    hook = pixart.model.register_forward_hook(lambda *_: forwards.append(1))
    try:
        with broadcast(pixart.pipe, REUSE) as handle:
            got = pixart()
            (row,) = set(rows_of(handle).values())
        n = len(forwards)
        assert len(row) == handle.report().evaluations == n
        assert row == closed_form_fraction(n, 3, 0.1, 0.85)
        with replay(pixart.model, row, lambda: None):
            assert torch.equal(pixart(), got)
    finally:
        hook.remove()
        pixart.pipe.scheduler = scheduler


def test_t6_second_order_with_two_forwards(wan):
    scheduler = wan.pipe.scheduler
    wan.pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    try:
        with broadcast(wan.pipe, REUSE) as handle:
            wan()
            report = handle.report()
    finally:
        wan.pipe.scheduler = scheduler
    assert (report.evaluations, report.forwards, report.branches) == (19, 38, 2)
    assert {row.row for row in report.layers} == {closed_form_fraction(19, 3, 0.1, 0.85)}


@pytest.mark.parametrize(
    ("scale", "reads"),
    [
        (None, [1.0, 0.857, 0.715]),  # t / 1000, and the last timestep of the schedule is 1
        ((1000.0, -1000.0), [0.0, 0.143, 0.285]),  # upwards, as Z-Image is given it
        ((0.0, 1.0), [1000.0, 857.0, 715.0]),
    ],
)
def test_t6_scales_of_timesteps(scale, reads):
    position = Position(scale)
    position.begin(tuple(torch.linspace(1000, 1, 8).tolist()))
    calls = [{"timestep": torch.tensor([t]), "hidden_states": torch.randn(1, 4)} for t in reads]
    assert [position.locate(call).index for call in calls] == [0, 1, 2]


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_t6_noisy_schedulers_reuse_every_second(pixart, name, caplog):
    scheduler = pixart.pipe.scheduler
    pixart.pipe.scheduler = getattr(diffusers, name)()
    try:
        with caplog.at_level(logging.WARNING), broadcast(pixart.pipe, FORECAST) as handle:
            pixart()
            rows = set(rows_of(handle).values())
    finally:
        pixart.pipe.scheduler = scheduler
    assert rows == {closed_form_fraction(STEPS, 2, 0.1, 0.85)}
    assert f"{name} adds noise in every step" in caplog.text


# T7


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 6, 8])
def test_t7_guidance_that_ends_midway(sd, k):
    def end(pipe, i, t, kwargs):
        if i != k:
            return {}
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": kwargs["prompt_embeds"].chunk(2)[-1]}

    called = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with replay(sd.model, FORECAST_ROW, lambda: sd.pipe.scheduler.timesteps):
        want = sd(**called)
    with broadcast(sd.pipe, FORECAST):
        assert torch.equal(sd(**called), want)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_t7_prompt_switched_midway(sd, k):
    other = torch.randn(2, 77, 8, generator=torch.Generator().manual_seed(5))
    restarts = []

    def switch(pipe, i, t, kwargs):
        if i == k:
            for restart in restarts:
                restart()
        return {"prompt_embeds": other} if i == k else {}

    called = {
        "callback_on_step_end": switch,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    with replay(sd.model, FORECAST_ROW, lambda: sd.pipe.scheduler.timesteps) as replayed:
        restarts = [layer.restart for layer in replayed.values()]
        want = sd(**called)
    restarts = []
    with broadcast(sd.pipe, FORECAST):
        assert torch.equal(sd(**called), want)


def test_t7_perturbed_attention_guidance(sd):
    pag = diffusers.StableDiffusionPAGPipeline(**sd.pipe.components, pag_applied_layers="mid")
    pag.set_progress_bar_config(disable=True)

    def run():
        called = {"num_inference_steps": STEPS, "output_type": "latent", "pag_scale": 3.0}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            return pag("a cat", height=48, width=64, generator=generator, **called).images

    want = run()
    with broadcast(pag, EVERY):
        assert torch.equal(run(), want)
    with broadcast(pag, REUSE) as handle:
        got = run()
        assert torch.equal(run(), got)
        # it sets processors of its own during a call, and puts ours back
        assert not any(row.reason for row in handle.report().layers)
    assert not torch.equal(got, want)


@torch.no_grad()
def test_t7_tiles_of_one_step_are_kept_apart(wan):
    loop = Loop(wan.model)
    tiles = torch.randn(2, STEPS, 1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(2))
    alone = []
    for tile in tiles:
        with broadcast(wan.model, REUSE, scheduler=loop.scheduler):
            alone.append([loop(i, 0, latent=tile[i])[0] for i in range(STEPS)])
    with broadcast(wan.model, REUSE, scheduler=loop.scheduler):
        for i in range(STEPS):
            for tile, want in zip(tiles, alone, strict=True):
                assert torch.equal(loop(i, 0, latent=tile[i])[0], want[i])


def test_t7_going_back_in_time_starts_over(wan):
    loop = Loop(wan.model)
    with broadcast(wan.model, REUSE, scheduler=loop.scheduler):
        want = [loop(i, 0)[0] for i in range(2, STEPS)]
    with broadcast(wan.model, REUSE, scheduler=loop.scheduler):
        for i in range(5):
            loop(i, 0, latent=loop.latents[i] + 1)
        got = [loop(i, 0)[0] for i in range(2, STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# T8


@torch.no_grad()
def test_t8_residual_of_now():
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
    seen = []
    attention = next(iter(attention_layers(model).values()))
    assert attention.residual_connection
    attention.rescale_output_factor = 1.5
    attention.register_forward_hook(lambda m, args, out: seen.append((args[0].clone(), out)))
    with broadcast(model, REUSE, scheduler=scheduler) as handle:
        for t in scheduler.timesteps:
            model(torch.randn(2, 3, 8, 8), t)
        assert set(rows_of(handle).values()) == {REUSE_ROW}
    deltas = [out * 1.5 - x for x, out in seen]
    for i, letter in enumerate(REUSE_ROW):
        same = torch.allclose(deltas[i], deltas[i - 1], atol=1e-5)
        assert same == (letter == "=")
        assert not torch.allclose(seen[i][1], seen[i - 1][1], atol=1e-2)


# T11


def snapshot(model):
    layers = attention_layers(model)
    return (
        {name: module.processor for name, module in layers.items()},
        {name: dict(vars(module.processor)) for name, module in layers.items()},
        {name: value.clone() for name, value in model.state_dict().items()},
    )


def same(before, after):
    processors, settings, weights = before
    return (
        all(after[0][name] is processor for name, processor in processors.items())
        and settings == after[1]
        and weights.keys() == after[2].keys()
        and all(torch.equal(after[2][name], value) for name, value in weights.items())
    )


def test_t11_remove_restores_everything(family):
    before, want = snapshot(family.model), family(9)
    handle = broadcast(family.pipe, REUSE)
    assert not same(before, snapshot(family.model))
    assert family.model.state_dict().keys() == before[2].keys()
    family(9)
    handle.remove()
    assert same(before, snapshot(family.model))
    handle.remove()
    assert torch.equal(family(9), want)


def test_t11_an_exception_restores_everything(pixart):
    before = snapshot(pixart.model)
    with pytest.raises(ZeroDivisionError), broadcast(pixart.pipe, REUSE):
        pixart(callback=lambda *_: 1 / 0)
    assert same(before, snapshot(pixart.model))


def test_t11_save_pretrained(flux, tmp_path):
    with broadcast(flux.pipe, REUSE):
        flux.model.save_pretrained(tmp_path)
    loaded = type(flux.model).from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == flux.model.state_dict().keys()


def test_t11_ip_adapter_keeps_its_place():
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    flux = load("flux")
    attention = flux.model.transformer_blocks[0].attn
    adapter = FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=32)
    attention.set_processor(adapter)
    names = set(flux.model.state_dict())
    with broadcast(flux.pipe, REUSE):
        assert isinstance(attention.processor, FluxIPAdapterAttnProcessor)
        assert set(flux.model.state_dict()) == names
        attention.processor.scale = [0.25]
    assert attention.processor is adapter
    assert adapter.scale == [0.25]


# T12


@pytest.mark.parametrize("name", ["flux", "cogvideox"])
def test_t12_parity_with_the_hook_of_diffusers(name):
    family = load(name)
    if name == "flux":  # the last timestep of a run would stay
        family.pipe._current_timestep = None
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: family.pipe.current_timestep,
    )
    family.model.enable_cache(config)
    want = family(20)
    family.model.disable_cache()
    assert not torch.equal(family(20), want)
    with broadcast(family.pipe, PabPlan(spatial=2, window=(100, 800))) as handle:
        assert torch.equal(family(20), want)
        (row,) = set(rows_of(handle).values())
    timesteps = family.pipe.scheduler.timesteps
    assert row == closed_form_pab(timesteps, 2, 100, 800)


# T15


def test_t15_two_instances_do_not_interact():
    one, two = load("pixart"), load("flux")
    copied = copy.deepcopy(one.pipe)
    with broadcast(one.pipe, REUSE):
        first = one()
    with broadcast(two.pipe, FORECAST):
        second = two()
    with broadcast(one.pipe, REUSE) as a, broadcast(two.pipe, FORECAST) as b:

        def beside(i, t, latents):
            two(steps=8, seed=i)

        assert torch.equal(one(callback=beside), first)
        assert torch.equal(two(), second)
        assert {*rows_of(a).values()} == {REUSE_ROW}
        assert {*rows_of(b).values()} == {FORECAST_ROW}
        one.pipe = copied
        assert not torch.equal(one(), first)
