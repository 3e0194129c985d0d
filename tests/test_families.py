"""Every family of the layout table, on its stock pipeline: kinds, layouts, and where tokens lie."""

import collections
import dataclasses
import inspect
import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from foveate.attn_processors import LocalAttnProcessor, SoftmaxAttnProcessor, apply
from foveate.attn_processors.layouts import attention_layers, family_of
from foveate.attn_processors.layouts.grids import patch_sizes
from probes import GainAttnProcessor
from tiny_families import FAMILIES, TinyFamily, tiny_family

RUNNING = [name for name, expected in FAMILIES.items() if expected.layouts]


@pytest.mark.parametrize("name", FAMILIES)
def test_kinds(name):
    tiny = tiny_family(name)
    family = family_of(tiny.model)
    assert not family.is_guess
    kinds = [family.kind(n, module) for n, module in attention_layers(tiny.model).items()]
    assert collections.Counter(kinds) == tiny.expected.kinds


@pytest.mark.parametrize("name", FAMILIES)
def test_layouts_that_operators_see(name):
    tiny, probe = tiny_family(name), GainAttnProcessor()
    with apply(tiny.pipe, probe):
        tiny()
    assert set(probe.calls) == tiny.expected.layouts


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Watch(GainAttnProcessor):
    """Keeps the queries of every call."""

    queries: list = dataclasses.field(default_factory=list)

    def attend(self, q, k, v, *, layout, scale):
        self.queries.append(q.clone())
        return super().attend(q, k, v, layout=layout, scale=scale)


class Poke:
    """Forward pre-hook that adds to one place of an argument's first sample."""

    def __init__(self, name, index):
        self.name, self.index = name, index

    def __call__(self, model, args, kwargs):
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        value = given[self.name]
        samples = [x.clone() for x in value]  # z_image holds a list of them
        samples[0][self.index] += 1
        changed = samples if isinstance(value, list) else torch.stack(samples)
        return (), {**given, self.name: changed}


def first_queries(tiny, poke=None):
    """Queries of the first call of each layout, and the layout of the very first."""
    probe = Watch()
    hook = None if poke is None else tiny.model.register_forward_pre_hook(poke, with_kwargs=True)
    with apply(tiny.pipe, probe):
        tiny()
    if hook is not None:
        hook.remove()
    pairs = list(zip(probe.calls, probe.queries, strict=True))
    return dict(reversed(pairs)), probe.calls[0]


def moved(before, after):
    """Tokens whose queries differ in any sample or head."""
    return (before != after).any(-1).any(0).any(0).nonzero().flatten().tolist()


VIDEOS = ("wan", "hunyuan_video", "hunyuan_video_15", "mochi", "allegro", "latte", "z_image")


def latent_index(tiny, place):
    """Index of the patch at (frame, row, column) in a sample of the denoiser's latent."""
    sizes = (1, 2, 2) if tiny.name == "z_image" else patch_sizes(tiny.model)
    frame, row, column = (
        slice(n * size, (n + 1) * size) for n, size in zip(place, sizes, strict=True)
    )
    if tiny.name == "cogvideox":
        return frame, slice(None), row, column
    if tiny.name == "kandinsky5":
        return frame, row, column
    return (slice(None), frame, row, column) if tiny.name in VIDEOS else (slice(None), row, column)


# convolutions before a UNet's attention spread what is changed
UNETS = ("sd", "sdxl", "animatediff")
LATENTS = [name for name in RUNNING if not FAMILIES[name].packed and name not in UNETS]


@pytest.mark.parametrize("name", LATENTS)
def test_grid_tokens_lie_where_the_layout_says(name):
    tiny = tiny_family(name)
    before, first = first_queries(tiny)
    frames, height, width = first.grid
    argument = "x" if name == "z_image" else "hidden_states"
    for place in itertools.product({0, frames - 1}, {0, height - 1}, {1, width - 1}):
        after, _ = first_queries(tiny, Poke(argument, latent_index(tiny, place)))
        raster = (place[0] * height + place[1]) * width + place[2]
        assert moved(before[first], after[first]) == [first.grid_slice.start + raster]


# z_image names its text otherwise; mochi's pooled text reaches every token
WITH_TEXT = [
    name
    for name in RUNNING
    if any(layout.text for layout in FAMILIES[name].layouts) and name not in ("z_image", "mochi")
]


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_tokens_lie_where_the_layout_says(name):
    tiny = tiny_family(name)
    before, _ = first_queries(tiny)
    joint = [layout for layout in before if layout.text][-1]  # the earliest
    after, _ = first_queries(tiny, Poke("encoder_hidden_states", 1))
    found = moved(before[joint], after[joint])
    grid = range(joint.num_tokens)[joint.grid_slice]
    assert found
    assert not set(found) & set(grid)


@pytest.mark.parametrize("name", ["chroma", "qwen", "hunyuan_video", "hunyuan_video_15", "z_image"])
def test_samples_of_different_text_lengths(name):
    """Padding of one sample's text is left out for that sample alone."""
    tiny = tiny_family(name)
    given = dict(tiny.arguments)
    for key, value in tiny.arguments.items():
        if isinstance(value, torch.Tensor) and "mask" in key:
            given[key] = torch.cat((value, (torch.arange(value.shape[1]) < 1).to(value)[None]))
        elif isinstance(value, torch.Tensor):
            given[key] = value.repeat(2, *[1] * (value.dim() - 1))
        elif isinstance(value, list) and isinstance(value[0], torch.Tensor):
            given[key] = [value[0], value[0][:3]]
    probe = GainAttnProcessor()
    dense = run_two(tiny, given)
    with apply(tiny.pipe, probe):
        ours = run_two(tiny, given)
    assert len({layout.text for layout in probe.calls}) > 1
    assert torch.allclose(ours, dense, atol=1e-5)
    with apply(tiny.pipe, SoftmaxAttnProcessor()):
        assert torch.equal(run_two(tiny, given), dense)


@torch.no_grad()
def run_two(tiny, given):
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    result = tiny.pipe(**given, generator=generators, num_inference_steps=1, output_type="latent")
    return result.images if hasattr(result, "images") else result.frames


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen", "z_image")]


@pytest.mark.parametrize("name", ["hunyuan_video", *SLOW])
def test_padded_text_compiles_to_full_graphs(name):
    torch._dynamo.reset()
    counter = CompileCounter()
    tiny = TinyFamily(name)
    with apply(tiny.pipe, LocalAttnProcessor(radius=2)) as handle:
        want = tiny()
        tiny.model.compile(backend=counter, fullgraph=True)
        assert torch.allclose(tiny(), want, atol=1e-5)
        rows = [row for row in handle.report().layers if row.kind == "joint"]
        assert all(row.operator == "local" for row in rows)
    # a graph for each length of the text
    assert counter.frame_count <= 2
    torch._dynamo.reset()
