"""Pictures above the base size: stages, sizes, seeds, and a pipeline left as it was."""

import math

import diffusers
import pytest
import torch

import foveate
from foveate.pipelines.largest_tensor import LargestTensor
from foveate.pipelines.progressive import progressive
from foveate.pipelines.sizes import base_side, check_size, size_multiple, stage_sizes
from tiny_pipelines import Tiny

# (height, width) above the base of each tiny pipeline, that base, and the stages
CASES = {
    "sd": ((48, 64), 32, ((24, 40), (48, 64))),
    "flux": ((24, 32), 12, ((10, 14), (16, 22), (24, 32))),
}
RADIUS = 2


@pytest.fixture(scope="module")
def tinies():
    return {name: Tiny(name) for name in CASES}


@pytest.fixture(params=list(CASES))
def tiny(request, tinies):
    return tinies[request.param]


def draw(tiny, seed=0, **options):
    (height, width), base_size, _ = CASES[tiny.name]
    call = {name: value for name, value in tiny.arguments.items() if name != "prompt"}
    defaults = {"height": height, "width": width, "base_size": base_size, "call": call}
    defaults |= {"steps": 3, "strength": 0.7}
    return progressive(
        tiny.pipe,
        "a cat",
        **{**defaults, **options},
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    )


def forwards(tiny, action):
    """Whether our operator was in place at each forward of the denoiser while `action` ran."""
    seen = []

    def look(model, args, kwargs):
        names = {type(p).__name__ for p in model.attn_processors.values()}
        seen.append(names)

    hook = tiny.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        action()
    finally:
        hook.remove()
    return seen


def test_stages_are_those_of_the_plan(tiny):
    drawn = draw(tiny)
    (height, width), _, sizes = CASES[tiny.name]
    assert drawn.sizes == sizes
    assert drawn.images.shape == (1, 3, height, width)
    assert drawn.report is None
    assert torch.isfinite(drawn.images).all()


def test_same_seed_same_picture(tiny):
    first, again, other = draw(tiny), draw(tiny), draw(tiny, seed=1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_strength_matters(tiny):
    assert not torch.equal(draw(tiny, strength=0.4).images, draw(tiny, strength=1.0).images)


@pytest.mark.parametrize("attention", [None, foveate.LocalAttnProcessor(radius=RADIUS)])
def test_small_size_is_one_ordinary_call(tiny, attention):
    height, width = CASES[tiny.name][0]
    drawn = draw(tiny, base_size=64, attention=attention)
    if attention is None:
        plain = tiny((height, width), steps=3)
    else:
        with foveate.apply(tiny.pipe, attention):
            plain = tiny((height, width), steps=3)
    assert drawn.sizes == ((height, width),)
    assert torch.equal(drawn.images, plain)


def test_draft_is_dense_and_the_rest_is_not(tiny):
    local = foveate.LocalAttnProcessor(radius=RADIUS)
    stock = {type(p).__name__ for p in tiny.model.attn_processors.values()}
    seen = forwards(tiny, lambda: draw(tiny, attention=local))
    num_stages = len(CASES[tiny.name][2])
    passes = len(seen) - 3  # the draft runs all 3 steps, every stage int(3 * 0.7) or one more
    assert all(names == stock for names in seen[:3])
    assert all(names != stock for names in seen[3:])
    assert passes in (2 * (num_stages - 1), 3 * (num_stages - 1))


def test_report_is_of_the_last_stage(tiny):
    drawn = draw(tiny, attention=foveate.LocalAttnProcessor(radius=RADIUS))
    height, width = CASES[tiny.name][0]
    tokens = max(row.tokens for row in drawn.report.layers if row.tokens is not None)
    grid = (height // 4) * (width // 4) if tiny.name == "sd" else (height // 2) * (width // 2)
    text = 0 if tiny.name == "sd" else 16
    assert tokens == grid + text


def test_attention_changes_the_picture(tiny):
    local = draw(tiny, attention=foveate.LocalAttnProcessor(radius=1))
    assert not torch.equal(local.images, draw(tiny).images)


@pytest.mark.parametrize("fails", [False, True])
def test_pipeline_is_left_as_it_was(tiny, fails):
    tiny(steps=2)
    pipe = tiny.pipe
    processors = dict(tiny.model.attn_processors)
    before = dict(vars(pipe.scheduler))
    config, bar = dict(pipe.config), dict(pipe._progress_bar_config)
    parts = dict(pipe.components)
    options = {"attention": foveate.LocalAttnProcessor(radius=RADIUS)}
    if fails:
        # passes the checks, and breaks in the second stage's first forward
        hook = tiny.model.register_forward_pre_hook(_breaks_above(draft_forwards=3))
        with pytest.raises(RuntimeError, match="broken on purpose"):
            draw(tiny, **options)
        hook.remove()
    else:
        draw(tiny, **options)
    assert vars(pipe.scheduler).keys() == before.keys()
    assert all(vars(pipe.scheduler)[name] is value for name, value in before.items())
    assert all(p is processors[name] for name, p in tiny.model.attn_processors.items())
    assert all(part is parts[name] for name, part in pipe.components.items())
    assert (dict(pipe.config), pipe._progress_bar_config) == (config, bar)


def _breaks_above(draft_forwards):
    count = iter(range(draft_forwards))

    def hook(model, args):
        if next(count, None) is None:
            raise RuntimeError("broken on purpose")

    return hook


def test_batch_equals_one_by_one(tiny):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    (height, width), base_size, _ = CASES[tiny.name]
    call = {name: value for name, value in tiny.arguments.items() if name != "prompt"}
    both = progressive(
        tiny.pipe,
        ["a cat", "a cat"],
        height=height,
        width=width,
        base_size=base_size,
        steps=3,
        strength=0.7,
        generator=generators,
        call=call,
        output_type="pt",
    )
    for seed in (0, 1):
        torch.testing.assert_close(both.images[seed], draw(tiny, seed).images[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_memory_grows_with_the_tokens(tiny, impl):
    """Four times the tokens: four times the largest tensor, sixteen times with the dense oracle."""
    local = foveate.LocalAttnProcessor(radius=RADIUS, impl=impl)
    height, width = CASES[tiny.name][0]
    most = []
    for factor in (1, 2):
        with LargestTensor() as largest:
            draw(tiny, height=factor * height, width=factor * width, steps=2, attention=local)
        most.append(largest.num_bytes)
    assert (most[1] <= 4.5 * most[0]) == (impl == "torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 49}, "height must be a positive multiple of"),
        ({"width": 0}, "width must be a positive multiple of"),
        ({"strength": 0.0}, r"strength must be in \(0, 1\], got 0.0"),
        ({"strength": 1.1}, r"strength must be in \(0, 1\], got 1.1"),
        ({"strength": 0.3}, r"steps \* strength must be >= 1, got 3 \* 0.3"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"base_size": 0}, "base_size must be >= 1 pixel, got 0"),
        ({"call": {"no_such": 1}}, "call has 'no_such'"),
        ({"call": {"strength": 0.5}}, "call has 'strength'"),
        ({"attention": "local"}, "expected a foveate processor"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tiny, options, message):
    before = dict(tiny.model.attn_processors)
    seen = []

    def refused():
        with pytest.raises(ValueError, match=message):
            draw(tiny, **options)
        seen.append(True)

    assert forwards(tiny, refused) == []
    assert seen
    assert all(p is before[name] for name, p in tiny.model.attn_processors.items())


def test_processor_already_there_is_refused_before_the_draft(tiny):
    with foveate.apply(tiny.pipe, foveate.LocalAttnProcessor(radius=RADIUS)):

        def refused():
            with pytest.raises(ValueError, match="already"):
                draw(tiny, attention=foveate.LocalAttnProcessor(radius=RADIUS))

        assert forwards(tiny, refused) == []


def test_pipeline_without_image_to_image(tinies):
    class Unlisted(diffusers.StableDiffusionPipeline):
        pass

    pipe = Unlisted(**tinies["sd"].pipe.components, requires_safety_checker=False)
    with pytest.raises(NotImplementedError, match="no image-to-image form of Unlisted"):
        progressive(pipe, "a cat", height=64, width=64, base_size=32, steps=2)


@pytest.mark.parametrize(
    ("height", "width", "base", "multiple"),
    [(64, 64, 64, 8), (512, 512, 64, 8), (96, 64, 64, 8), (1024, 40, 64, 8), (126, 258, 31, 2)],
)
def test_stage_sizes(height, width, base, multiple):
    sizes = stage_sizes(height, width, base_size=base, multiple=multiple)
    assert sizes[-1] == (height, width)
    assert all(n % multiple == 0 and n > 0 for size in sizes[:-1] for n in size)
    for small, large in zip(sizes, sizes[1:], strict=False):
        for a, b in zip(small, large, strict=True):
            # within the rounding of either end, nothing grows by more than 2
            assert a <= b <= 2 * (a + multiple / 2) + multiple / 2
    area = math.sqrt(sizes[0][0] * sizes[0][1])
    assert len(sizes) == 1 or abs(area - base) <= multiple


def test_powers_of_two_are_hit():
    assert stage_sizes(512, 512, base_size=64, multiple=8) == (
        (64, 64),
        (128, 128),
        (256, 256),
        (512, 512),
    )


def test_sizes_of_pipelines():
    sd, flux, sd3 = (Tiny(name).pipe for name in ("sd", "flux", "sd3"))
    assert [size_multiple(pipe) for pipe in (sd, flux, sd3)] == [8, 2, 1]
    assert base_side(sd) == 32 * 4
    assert base_side(flux) == 128
    assert base_side(sd3) == 32
    with pytest.raises(ValueError, match="got 60; nearest: 56 or 64"):
        check_size(sd, 64, 60)
    with pytest.raises(ValueError, match="got 4; nearest: 8"):
        check_size(sd, 4, 64)


def test_largest_tensor_counts_new_storage_only():
    x = torch.ones(1000)
    with LargestTensor() as largest:
        x.expand(50, 1000)
        x.add_(1)
        x[:10] + 1
        x.new_ones(7, 7)
    assert largest.num_bytes == 49 * 4
