"""Each method plans what its formula says; span maps are the attention's own mass."""

import dataclasses
import math

import pytest
import torch

import foveate
from foveate.attn_processors.modulation import SceneTokens, Site
from foveate.attn_processors.modulation.lowering import lower
from foveate.kernels import TokenLayout
from modulation_oracle import Watched
from oracles import FLOAT32, FLOAT64, LargestTensor
from tiny_pipelines import Tiny

TEXT, ROWS, COLUMNS = 7, 4, 6
NUM_GRID = ROWS * COLUMNS
BOXES = {"red cat": (0, 0, 0.5, 1), "big dog": (0.5, 0.25, 1, 1)}
SCENE = foveate.Scene("red cat by big dog", regions=BOXES)
# words 1 and 2 are the first phrase, 4 and 5 the second, 0 and 6 no words
TOKENS = SceneTokens(
    phrases={"red cat": (1, 2), "big dog": (4, 5)},
    nouns={"red cat": (2,), "big dog": (5,)},
    words=(1, 2, 3, 4, 5),
)
LAYOUTS = {
    "cross": TokenLayout(grid=(1, ROWS, COLUMNS)),
    "joint": TokenLayout(text=TEXT, grid=(1, ROWS, COLUMNS)),
    "joint, text last": TokenLayout(text=TEXT, grid=(1, ROWS, COLUMNS), text_first=False),
}


class Call:
    """A call of one layer with random q, k, and its site."""

    def __init__(self, kind, progress=0.0, batch=2, scene=SCENE):
        self.layout = LAYOUTS[kind]
        self.num_queries = self.layout.num_tokens
        self.num_keys = TEXT if kind == "cross" else self.num_queries
        self.text = 0 if kind == "cross" or self.layout.text_first else NUM_GRID
        self.q, self.k = (
            torch.randn(batch, 3, n, 8, dtype=torch.float64) * 2
            for n in (self.num_queries, self.num_keys)
        )
        self.site = Site(
            layer="layer",
            kind=kind.partition(",")[0],
            layout=self.layout,
            progress=progress,
            num_keys=self.num_keys,
            text=self.text,
            text_length=TEXT,
            padding=None,
            scale=8**-0.5,
            device=self.q.device,
            dtype=torch.float64,
            tokens={scene: TOKENS},
            mass=lambda columns: self.weights() @ columns,
            stores={},
            texts=None,
            project=None,
            beside=None,
            align=None,
        )

    def weights(self):
        return (self.q @ self.k.mT * 8**-0.5).softmax(-1)

    def bias(self, modulation):
        """The bias [b, N, M] of the modulation's plan."""
        plan = modulation.plan(self.site, self.q, self.k, self.k)
        if plan.grouped is not None:
            return plan.grouped.bias[plan.grouped.groups]
        return (plan.low_rank.a @ plan.low_rank.b.mT)[:, 0]

    def pixel(self, i):
        """(row, column) of query i, or None where it is text."""
        i -= self.layout.grid_slice.start
        return divmod(i, COLUMNS) if 0 <= i < NUM_GRID else None


def in_box(pixel, box):
    """Whether the cell is in the box, by its centre: these boxes follow the cells."""
    y, x = (pixel[0] + 0.5) / ROWS, (pixel[1] + 0.5) / COLUMNS
    return box[0] < x < box[2] and box[1] < y < box[3]


def expected(call, value):
    """[N, M] of value(pixel or None, word)."""
    bias = torch.zeros(call.num_queries, call.num_keys, dtype=torch.float64)
    for i in range(call.num_queries):
        for word in range(TEXT):
            bias[i, call.text + word] = value(call.pixel(i), word)
    return bias


@pytest.mark.parametrize("kind", LAYOUTS)
def test_region_bind_hides_phrases_outside_their_regions(kind):
    call = Call(kind, progress=0.4 if kind == "cross" else 0.0)

    def value(pixel, word):
        for name, tokens in TOKENS.phrases.items():
            if word in tokens and pixel is not None and not in_box(pixel, BOXES[name]):
                return -torch.inf
        return 0.0

    want = expected(call, value)
    assert torch.equal(call.bias(foveate.RegionBind(SCENE))[0], want)
    # every query sees something, the uncovered ones too
    assert (want > -torch.inf).any(1).all()
    assert (want.isinf()).any()


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_at_first_a_region_sees_its_phrase_alone(kind, hard):
    call = Call(kind, progress=0.39)
    alone = None if kind == "cross" else 0.4
    plan = foveate.RegionBind(SCENE, hard=hard, alone=alone).plan(call.site, call.q, call.k, 0)
    got = plan.grouped.bias[plan.grouped.groups][0]

    def value(pixel, word):
        if pixel is None:
            return 0.0
        inside = {name for name, box in BOXES.items() if in_box(pixel, box)}
        own = any(word in TOKENS.phrases[name] for name in inside)
        others = any(word in TOKENS.phrases[name] for name in BOXES.keys() - inside)
        # word 0 stands before the first word, where attention goes that no word gets
        alone = inside and not own and word > 0
        return -torch.inf if alone or (hard and others) else 0.0

    assert torch.equal(got, expected(call, value))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_given_time_alone_holds_for_every_layer(kind):
    lonely, later = (Call(kind, progress=progress) for progress in (0.59, 0.6))
    hides = [
        call.bias(foveate.RegionBind(SCENE, alone=0.6)).isinf().sum() for call in (lonely, later)
    ]
    never = later.bias(foveate.RegionBind(SCENE, alone=0)).isinf().sum()
    assert hides[0] > hides[1] == never


def test_a_time_alone_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"alone must lie in \[0, 1\] or be None, got 1.5"):
        foveate.RegionBind(SCENE, alone=1.5)


def test_soft_regions_weigh_by_coverage():
    call = Call("joint", progress=0.5)
    mask = torch.rand(ROWS, COLUMNS)
    scene = foveate.Scene(SCENE.prompt, regions={"red cat": mask})
    call.site.tokens[scene] = TOKENS
    got = call.bias(foveate.RegionBind(scene, hard=False))[0]
    logs = mask.double().clamp_min(1e-4).log()

    def value(pixel, word):
        return logs[pixel] if word in (1, 2) and pixel is not None else 0.0

    torch.testing.assert_close(got, expected(call, value))


def test_a_tiny_region_keeps_its_cell_in_every_frame():
    site = Call("cross").site
    layout = TokenLayout(grid=(3, ROWS, COLUMNS))
    inside = dataclasses.replace(site, layout=layout).inside([(0.4, 0.4, 0.42, 0.42)])
    assert inside.view(3, -1).sum(1).tolist() == [1, 1, 1]


def test_overlapping_regions_see_both():
    boxes = {"red cat": (0, 0, 0.5, 1), "big dog": (0, 0, 1, 0.5)}
    scene = foveate.Scene(SCENE.prompt, regions=boxes)
    call = Call("cross", progress=0.5, scene=scene)
    got = call.bias(foveate.RegionBind(scene, overlap=True))[0]
    assert got[0].tolist() == [0.0] * TEXT  # first pixel is in both
    assert got[-1, [1, 2, 4, 5]].isinf().all()  # the last in none


def focused(kind, focus):
    """A call after a step of two calls, and the share of the phrases in their mass [b, 2, f*h*w]"""
    calls = [Call(kind, progress) for progress in (0.0, 0.25, 0.25, 0.5)]
    store = focus.new_store()
    for call in calls:
        call.site.stores[focus] = store
    plans = [focus.plan(call.site, call.q, call.k, call.k) for call in calls[:3]]
    assert plans[0] is None  # nothing has been seen
    assert None not in plans[1:]
    mass = 0
    for call in calls[1:3]:
        weights = call.weights().mean(1)[:, call.layout.grid_slice]
        words = [[call.text + word for word in words] for words in TOKENS.phrases.values()]
        one = torch.stack([weights[..., columns].sum(-1) for columns in words], 1)
        mass = mass + one / one.mean(-1, keepdim=True)
    return calls[3], mass


def gaussian(side, sigma):
    """Weights [to, from] that sum to 1 over the pixels there are."""
    weights = [
        [math.exp(-((i - j) ** 2) / (2 * sigma**2)) for j in range(side)] for i in range(side)
    ]
    weights = torch.tensor(weights, dtype=torch.float64)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("smooth", [0.0, 0.15])
def test_object_focus_keeps_the_phrase_of_most_mass(kind, smooth):
    focus = foveate.ObjectFocus(SCENE, smooth=smooth)
    call, mass = focused(kind, focus)
    if smooth:
        rows, columns = (gaussian(side, smooth * max(ROWS, COLUMNS)) for side in (ROWS, COLUMNS))
        planes = mass.unflatten(2, (ROWS, COLUMNS))
        mass = torch.einsum("bghw,yh,xw->bgyx", planes, rows, columns).flatten(2)
    winner = mass.argmax(1)
    assert 0 < winner.double().mean() < 1
    got = call.bias(focus)
    for b in range(2):

        def value(pixel, word, b=b):
            if pixel is None:
                return 0.0
            lost = 1 - int(winner[b, pixel[0] * COLUMNS + pixel[1]])
            return -torch.inf if word in list(TOKENS.phrases.values())[lost] else 0.0

        assert torch.equal(got[b], expected(call, value))


def test_object_focus_leaves_undecided_pixels_to_no_phrase():
    focus = foveate.ObjectFocus(SCENE, least=0.6, smooth=0)
    call, mass = focused("cross", focus)
    undecided = (mass / mass.sum(1, keepdim=True)).amax(1) < 0.6
    assert undecided.any()
    assert not undecided.all()
    hidden = call.bias(focus)[..., [1, 2, 4, 5]].isinf()
    assert torch.equal(hidden.all(-1), undecided)


@pytest.mark.parametrize("option", ["smooth", "least"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_object_focus_refuses_shares_outside_of_0_to_1(option, value):
    with pytest.raises(ValueError, match=rf"{option} must lie in \[0, 1\), got {value}"):
        foveate.ObjectFocus(SCENE, **{option: value})


def test_object_focus_goes_by_the_finest_layers(monkeypatch):
    tiny = Tiny("sd")
    scene = foveate.Scene(SCENE.prompt, phrases=list(BOXES))
    focus, maps = foveate.ObjectFocus(scene), foveate.SpanMaps(scene)
    added = {focus: [], maps: []}
    for reader, grids in added.items():
        store = type(reader.new_store())

        def add(self, step, planes, add=store.add, grids=grids):
            grids.append(tuple(planes.shape[2:]))
            add(self, step, planes)

        monkeypatch.setattr(store, "add", add)
    with foveate.modulate(tiny.pipe, [focus, maps]):
        tiny(prompt=SCENE.prompt, steps=3)
    finest = max(added[maps], key=math.prod)
    assert set(added[maps]) > {finest}
    assert added[focus] == [grid for grid in added[maps] if grid == finest]
    store = focus.new_store()
    takes = [store.takes(grid) for grid in [(4, 4), (8, 6), (4, 4), (8, 6)]]
    assert takes == [True, True, False, True]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("hard", [True, False])
def test_a_region_wins_where_focus_would_leave_it_no_word(hard, batch):
    """T5 has no start token: a region that is left alone sees its phrase and nothing else."""
    tiny = Tiny("pixart_t5")
    boxes = {"red cat": (0, 0, 0.5, 1), "big dog": (0.5, 0, 1, 1)}
    scene = foveate.Scene(SCENE.prompt, regions=boxes)
    edits = [foveate.RegionBind(scene, hard=hard), foveate.ObjectFocus(scene)]
    reader = foveate.SpanMaps(scene)
    for order in (edits, edits[::-1]):
        with foveate.modulate(tiny.pipe, [*order, reader]) as run:
            tiny(prompt=[scene.prompt] * batch, steps=4)
            maps = run.span_maps(steps=(0.25, 0.5))
        half = maps["red cat"].shape[-1] // 2
        left = torch.zeros_like(maps["red cat"])
        left[..., :half] = 1
        assert len(left) == batch
        torch.testing.assert_close(maps["red cat"], left, **FLOAT32)
        torch.testing.assert_close(maps["big dog"], 1 - left, **FLOAT32)


def test_object_focus_forgets_from_run_to_run():
    tiny = Tiny("sd")
    scene = foveate.Scene(SCENE.prompt, phrases=list(BOXES))
    focus = foveate.ObjectFocus(scene)
    with foveate.modulate(tiny.pipe, [focus]) as run:
        first, again = (tiny(prompt=SCENE.prompt, steps=3) for _ in range(2))
        assert run.read_by(focus).steps == [0, 1 / 3, 2 / 3]
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(again))
    assert not torch.equal(
        torch.as_tensor(tiny(prompt=SCENE.prompt, steps=3)), torch.as_tensor(again)
    )


@pytest.mark.parametrize("kind", LAYOUTS)
def test_emphasis_is_a_factor_on_the_weight(kind):
    call = Call(kind)
    got = call.bias(foveate.Emphasize(SCENE, {"red cat": 3.0, "big dog": 0.5})).exp()[0]
    factors = [1, 3, 3, 1, 0.5, 0.5, 1]
    torch.testing.assert_close(got[0, call.text :][:TEXT], torch.tensor(factors).double())
    assert (got == got[0]).all()
    damped = call.bias(foveate.Emphasize(SCENE, {"red cat": 3.0}, damp=True)).exp()[0]
    factors = [1, 1, 1, 1 / 3, 1 / 3, 1 / 3, 1]
    torch.testing.assert_close(damped[0, call.text :][:TEXT], torch.tensor(factors).double())


@pytest.mark.parametrize("damp", [False, True])
def test_emphasis_in_regions(damp):
    call = Call("joint")
    one = foveate.Emphasize(SCENE, {"red cat": 4.0}, in_regions=True, damp=damp)

    def value(pixel, word):
        if pixel is None or not in_box(pixel, BOXES["red cat"]):
            return 1.0
        factor = 4.0 if word in (1, 2) else 1.0
        return factor / 4 if damp and word in TOKENS.words else factor

    torch.testing.assert_close(
        call.bias(one)[0].exp()[:, :TEXT], expected(call, value)[:, :TEXT], **FLOAT64
    )


def test_emphasis_by_a_profile_of_heads():
    """In every layer the heads that the profile names, and no others."""
    tiny = Tiny("sd")
    tiny.pipe.to(torch.float64)
    tiny.dtype = torch.float64
    profile = {"down_blocks.0.*": [1], "mid_block.*": [0]}
    emphasis = foveate.Emphasize(SCENE, {"red cat": 8.0})
    parts = [emphasis.where(layers=layers, heads=heads) for layers, heads in profile.items()]
    blocks = (tiny.model.down_blocks[0], tiny.model.mid_block)
    for block, (head,) in zip(blocks, profile.values(), strict=True):
        attn = block.attentions[0].transformer_blocks[0].attn2
        with Watched(attn) as seen, foveate.modulate(tiny.pipe, parts):
            tiny(prompt=SCENE.prompt, steps=1)
        text = seen.text[1]  # of the conditional row
        weights = seen.weights(1, text)
        plain = weights.clone()
        # one token a letter: start, r e d c a t
        weights[head, :, 1:7] *= 8
        weights = weights / weights.sum(-1, keepdim=True)
        torch.testing.assert_close(seen.out[1], weights @ seen.project("to_v", text), **FLOAT64)
        torch.testing.assert_close(weights[1 - head], plain[1 - head], **FLOAT64)
        assert not torch.allclose(weights[head], plain[head], rtol=1e-2)


@pytest.mark.parametrize(("progress", "noun", "attribute"), [(0.1, 2, 1), (0.3, 1, 3), (0.8, 1, 1)])
def test_phase_weights_follow_the_schedule(progress, noun, attribute):
    call = Call("cross", progress)
    one = foveate.PhaseWeights(SCENE, noun=(2, 1, 1), attribute=(1, 3, 1))
    if noun == attribute == 1:
        assert one.plan(call.site, call.q, call.k, call.k) is None
        return
    factors = torch.tensor([1, attribute, noun, 1, attribute, noun, 1]).double()
    torch.testing.assert_close(call.bias(one)[0, 0].exp(), factors)


def test_temperature_of_a_joint_layer_is_between_pixels():
    call = Call("joint, text last")
    plan = foveate.SelfTemperature(2.5).plan(call.site, call.q, call.k, call.k)
    scale = plan.grouped.scale[plan.grouped.groups[0]]
    want = torch.ones(call.num_queries, call.num_keys, dtype=torch.float64)
    want[:NUM_GRID, :NUM_GRID] = 2.5
    assert torch.equal(scale, want)
    assert not plan.grouped.bias.any()


def test_temperature_lowers_the_entropy():
    q, k = (torch.randn(2, 3, NUM_GRID, NUM_GRID, dtype=torch.float64) for _ in range(2))
    call = Call("cross")
    site = dataclasses.replace(call.site, kind="self", num_keys=NUM_GRID, text=None)
    unit = torch.eye(NUM_GRID, dtype=torch.float64).expand_as(k)
    entropies = []
    for factor in (0.5, 1.5, 2.5, 4.0):
        plan = foveate.SelfTemperature(factor).plan(site, q, k, unit)
        weights, _ = lower(q, k, unit, plan=plan)
        want = (q @ k.mT * NUM_GRID**-0.5 * factor).softmax(-1)
        torch.testing.assert_close(weights, want, **FLOAT64)
        entropies.append(float(torch.special.entr(weights).sum(-1).mean()))
    assert entropies == sorted(entropies, reverse=True)


# span maps


def test_span_maps_are_the_softmax_mass():
    tiny = Tiny("sd")
    attn = tiny.model.mid_block.attentions[0].transformer_blocks[0].attn2
    seen = {}
    hooks = [
        getattr(attn, name).register_forward_hook(
            lambda module, args, out, name=name: seen.__setitem__(name, out)
        )
        for name in ("to_q", "to_k")
    ]
    reader = foveate.SpanMaps(SCENE).where(layers="mid_block*")
    with foveate.modulate(tiny.pipe, [reader]) as run:
        tiny(prompt=SCENE.prompt, steps=1)
        maps = run.span_maps()
    for hook in hooks:
        hook.remove()
    q, k = (seen[n].unflatten(2, (attn.heads, -1)).transpose(1, 2) for n in ("to_q", "to_k"))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)[1].mean(0)  # the conditional row
    # one token a letter: start, r e d c a t b y b i g d o g
    for name, columns in (("red cat", slice(1, 7)), ("big dog", slice(9, 15))):
        want = weights[:, columns].sum(-1).view(maps[name].shape)
        torch.testing.assert_close(maps[name], want, **FLOAT32)


def test_span_maps_show_edits():
    tiny = Tiny("flux")
    with foveate.modulate(tiny.pipe, [foveate.RegionBind(SCENE), foveate.SpanMaps(SCENE)]) as run:
        tiny(prompt=SCENE.prompt, max_sequence_length=32)
        maps = run.span_maps()
    half = maps["red cat"].shape[-1] // 2
    assert (maps["red cat"][..., half:] == 0).all()
    assert (maps["red cat"][..., :half] > 0).all()


def test_span_maps_by_step_and_size():
    tiny = Tiny("sd")
    with foveate.modulate(tiny.pipe, [foveate.SpanMaps(SCENE)]) as run:
        with pytest.raises(ValueError, match="no map was read"):
            run.span_maps()
        tiny(prompt=SCENE.prompt, steps=4)
        assert run.map_store.steps == [0, 0.25, 0.5, 0.75]
        whole = run.span_maps(size=(24, 32))["red cat"]
        parts = [
            run.span_maps(size=(24, 32), steps=(s, s + 0.25))["red cat"] for s in (0, 0.25, 0.5)
        ]
        parts.append(run.span_maps(size=(24, 32), steps=(0.75, 1))["red cat"])
        torch.testing.assert_close(sum(parts) / 4, whole)
        assert whole.shape == (1, 24, 32)
        assert not torch.equal(parts[0], parts[3])


def test_span_maps_at_256_pixels_take_less_than_50_megabytes():
    pipe = foveate.load_shapes("sd")
    scene = foveate.Scene("a [red circle]{a} and a [blue square]{b} on a teal background")
    call = {"prompt": scene.prompt, "height": 256, "width": 256, "num_inference_steps": 1}
    with LargestTensor() as stock:
        pipe(**call, output_type="latent")
    with LargestTensor() as read, foveate.modulate(pipe, [foveate.SpanMaps(scene)]) as run:
        pipe(**call, output_type="latent")
    assert run.span_maps()["a"].shape == (1, 64, 64)
    assert read.elements == stock.elements
    # of all layers and calls together, though most is gone as soon as its layer is done
    assert read.new_bytes - stock.new_bytes < 50e6


def test_span_maps_have_gradients():
    tiny = Tiny("sd")
    tiny.pipe.scheduler.set_timesteps(4)
    sample = torch.randn(1, 4, 12, 16, requires_grad=True)
    with foveate.modulate(tiny.pipe, [foveate.SpanMaps(SCENE)]) as run:
        text, _ = tiny.pipe.encode_prompt(SCENE.prompt, "cpu", 1, False)
        tiny.model(sample, tiny.pipe.scheduler.timesteps[0], text.detach())
        run.span_maps()["red cat"].sum().backward()
    assert sample.grad.abs().max() > 0


def test_maps_need_a_reader():
    tiny = Tiny("sd")
    with (
        foveate.modulate(tiny.pipe, [foveate.RegionBind(SCENE)]) as run,
        pytest.raises(ValueError, match="maps need one foveate.SpanMaps"),
    ):
        run.span_maps()
