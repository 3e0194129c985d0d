"""foveate.modulate on stock pipelines: identity, rows, undo, refusals, operators underneath."""

import pytest
import torch

import foveate
from foveate.attn_processors import (
    AgentAttnProcessor,
    FoveatedAttnProcessor,
    LinearAttnProcessor,
    LocalAttnProcessor,
    SoftmaxAttnProcessor,
)
from foveate.attn_processors.modulation import Modulation, Plan
from foveate.attn_processors.modulation.lowering import lower
from foveate.attn_processors.redirect import Redirected
from oracles import LargestTensor
from tiny_pipelines import Tiny

FAMILIES = ["sd", "sdxl", "flux", "sd3", "pixart_t5"]
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
PROMPT = "cat by dog"


def scene_of(prompt=PROMPT, swapped=False):
    one, two = prompt.split(" by ")
    boxes = (RIGHT, LEFT) if swapped else (LEFT, RIGHT)
    return foveate.Scene(prompt, regions=dict(zip((one, two), boxes, strict=True)))


SCENE = scene_of()
METHODS = {
    "RegionBind": foveate.RegionBind(SCENE),
    "RegionBind soft": foveate.RegionBind(SCENE, hard=False),
    "ObjectFocus": foveate.ObjectFocus(SCENE),
    "SelfTemperature": foveate.SelfTemperature(2.0),
    "Emphasize": foveate.Emphasize(SCENE, {"cat": 8.0}),
    "Emphasize damp": foveate.Emphasize(SCENE, {"cat": 8.0}, damp=True, in_regions=True),
    "PhaseWeights": foveate.PhaseWeights(SCENE, noun=(8.0, 8.0, 8.0)),
    "AttentionReweight": foveate.AttentionReweight(SCENE, {"cat": -4.0}),
}
# what has no effect by its parameters or its scope
IDENTITIES = {
    "factor 1": [foveate.SelfTemperature(1.0)],
    "strength 1": [foveate.Emphasize(SCENE, {"cat": 1.0})],
    "weights 1": [foveate.PhaseWeights(SCENE, noun=(1, 1, 1), attribute=(1, 1, 1))],
    "no steps": [foveate.RegionBind(SCENE).where(steps=(0.5, 0.5)), foveate.SelfTemperature(1.0)],
    "a reader": [foveate.SpanMaps(SCENE)],
}


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
    found = [
        request.getfixturevalue(n) for n in ("tiny", "sd", "flux") if n in request.fixturenames
    ]
    before = [dict(one.model.attn_processors) for one in found]
    yield
    for one, processors in zip(found, before, strict=True):
        now = one.model.attn_processors
        assert all(now[name] is processor for name, processor in processors.items())
        assert not any(isinstance(p, Redirected) for p in now.values())
        assert not one.model._forward_pre_hooks
        assert "encode_prompt" not in vars(one.pipe)


def predictions(tiny, modulations, **arguments):
    """What the denoiser returns in its first forward: [rows, ...]."""
    seen = []
    hook = tiny.model.register_forward_hook(lambda model, args, out: seen.append(out[0]))
    try:
        if modulations:
            with foveate.modulate(tiny.pipe, modulations):
                tiny(**{"prompt": PROMPT, "steps": 1, **arguments})
        else:
            tiny(**{"prompt": PROMPT, "steps": 1, **arguments})
    finally:
        hook.remove()
    return seen


# identity


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_is_bit_equal(tiny, name):
    want = tiny(prompt=PROMPT)
    with foveate.modulate(tiny.pipe, IDENTITIES[name]):
        assert torch.equal(tiny(prompt=PROMPT), want)
    assert torch.equal(tiny(prompt=PROMPT), want)


@pytest.mark.parametrize("name", METHODS)
def test_methods_change_the_picture(tiny, name):
    want = tiny(prompt=PROMPT)
    with foveate.modulate(tiny.pipe, [METHODS[name]]) as run:
        got = tiny(prompt=PROMPT)
    assert got.isfinite().all()
    assert not torch.equal(got, want)
    rows = run.explain().layers
    assert rows
    assert all(row.did and row.calls >= 2 for row in rows)
    assert all(METHODS[name].name in what for row in rows for what in row.did)


def test_the_order_of_a_list_does_not_matter(tiny):
    mods = [METHODS["RegionBind"], METHODS["Emphasize"], METHODS["SelfTemperature"]]
    with foveate.modulate(tiny.pipe, mods):
        want = tiny(prompt=PROMPT)
    with foveate.modulate(tiny.pipe, [foveate.compose(*reversed(mods))]):
        torch.testing.assert_close(tiny(prompt=PROMPT), want, rtol=1e-4, atol=1e-5)


# rows of the batch


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart_t5"])
def test_the_unconditional_half_is_untouched(family):
    tiny = Tiny(family)
    call = {"guidance_scale": 5.0, "negative_prompt": "dog"}
    (want,) = predictions(tiny, [], **call)
    (got,) = predictions(tiny, [METHODS["RegionBind"], METHODS["Emphasize"]], **call)
    assert torch.equal(got[0], want[0])
    assert not torch.equal(got[1], want[1])
    uncond = METHODS["RegionBind"].where(branch="uncond")
    (other,) = predictions(tiny, [uncond], **{**call, "negative_prompt": "dog by cat"})
    (plain,) = predictions(tiny, [], **{**call, "negative_prompt": "dog by cat"})
    assert torch.equal(other[1], plain[1])
    assert not torch.equal(other[0], plain[0])


def test_the_negative_forward_of_flux_is_untouched(flux):
    call = {"true_cfg_scale": 3.0, "negative_prompt": "dog"}
    want = predictions(flux, [], **call)
    got = predictions(flux, [METHODS["RegionBind"]], **call)
    assert len(want) == len(got) == 2
    assert not torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_each_row_has_the_scene_of_its_own_prompt(tiny):
    prompts = [PROMPT, "cow by owl", "a third"]
    mods = [foveate.RegionBind(scene_of(prompt)) for prompt in prompts[:2]]

    def run(prompts, mods):
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        with foveate.modulate(tiny.pipe, mods):
            return tiny(prompt=prompts, generator=generators)

    both = run(prompts, mods)
    alone = run(prompts[:1], mods[:1])
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    plain = tiny(prompt=prompts, generator=generators)
    assert not torch.allclose(both[1], plain[1], atol=1e-6)
    torch.testing.assert_close(both[2], plain[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", ["RegionBind", "SelfTemperature"])
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_several_pictures_of_one_prompt(family, other, request):
    tiny = request.getfixturevalue(family)
    with foveate.modulate(tiny.pipe, [METHODS[other], METHODS["ObjectFocus"]]) as run:
        generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
        both = tiny(prompt=PROMPT, num_images_per_prompt=2, generator=generators)
        one = tiny(prompt=PROMPT, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)
    assert "ObjectFocus" in str(run.explain())


def test_embeddings_instead_of_a_prompt(sd):
    with torch.no_grad():
        given, _ = sd.pipe.encode_prompt(PROMPT, "cpu", 1, False)
    with foveate.modulate(sd.pipe, [METHODS["RegionBind"]]):
        want = sd(prompt=PROMPT)
        negative = {"negative_prompt": ""}
        assert torch.equal(sd(prompt=None, prompt_embeds=given, **negative), want)


def test_any_size_after_another(tiny):
    first, second = tiny.sizes
    mods = [METHODS["RegionBind"], METHODS["ObjectFocus"]]
    with foveate.modulate(tiny.pipe, mods):
        alone = tiny(second, prompt=PROMPT)
    with foveate.modulate(tiny.pipe, mods):
        a = tiny(first, prompt=PROMPT)
        assert torch.equal(tiny(second, prompt=PROMPT), alone)
        assert torch.equal(tiny(first, prompt=PROMPT), a)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_text_keys_are_where_the_model_puts_them(family, monkeypatch):
    tiny, seen = Tiny(family), {}
    attn = tiny.model.transformer_blocks[0].attn

    def spy(q, k, v, *, plan, **others):
        seen["k"], seen["hidden"] = k, plan.grouped.bias.isinf().any(0)
        return lower(q, k, v, plan=plan, **others)

    monkeypatch.setattr("foveate.attn_processors.modulation.layer.lower", spy)
    hook = attn.add_k_proj.register_forward_hook(lambda m, args, out: seen.update(text=out))
    mod = METHODS["RegionBind"].where(layers="transformer_blocks.0.attn")
    with foveate.modulate(tiny.pipe, [mod]):
        tiny(prompt=PROMPT, steps=1)
    hook.remove()
    text = attn.norm_added_k(seen["text"][-1:].unflatten(2, (attn.heads, -1))).transpose(1, 2)
    # the first phrase is the first word; T5 begins a word with a piece of its own
    tokenizer = tiny.pipe.tokenizer_2 if family == "flux" else tiny.pipe.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(PROMPT)["input_ids"])
    start = 0 if family == "flux" else 1
    assert "".join(pieces[start : start + 4]).strip("\u2581").startswith("cat")
    keys = seen["k"][:, :, seen["hidden"].nonzero()[:3, 0]]
    torch.testing.assert_close(keys, text[:, :, start : start + 3])


# scope


def test_where(sd):
    layer = "down_blocks.0.*"
    mod = METHODS["RegionBind"].where(layers=layer, steps=(0, 0.5), heads=[0])
    with foveate.modulate(sd.pipe, [mod]) as run:
        sd(prompt=PROMPT, steps=4)
    (row,) = run.explain().layers
    assert row.layer.startswith("down_blocks.0")
    assert sum(row.did.values()) == 2
    assert row.left == {"outside of its steps": 2}
    strided = METHODS["RegionBind"].where(stride=2)
    with foveate.modulate(sd.pipe, [METHODS["RegionBind"]]) as all_layers:
        names = [row.layer for row in all_layers.explain().layers]
    with foveate.modulate(sd.pipe, [strided]) as some:
        assert [row.layer for row in some.explain().layers] == names[::2]


def test_heads_one_by_one_make_all_heads(sd):
    heads = sd.pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.heads
    assert heads > 1
    where = {"layers": "down_blocks.0.*"}
    whole = METHODS["RegionBind"].where(**where)
    parts = [METHODS["RegionBind"].where(**where, heads=[h]) for h in range(heads)]
    (want,) = predictions(sd, [whole])
    (got,) = predictions(sd, parts)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    (first,) = predictions(sd, parts[:1])
    assert not torch.allclose(first, want, atol=1e-6)


def test_explanation_prints_a_table(sd):
    with foveate.modulate(sd.pipe, [METHODS["RegionBind"]]) as run:
        sd(prompt=PROMPT)
        sd(prompt=PROMPT)
    text = str(run.explain())
    assert text.splitlines()[0].split() == [
        "layer", "kind", "did", "calls", "extra", "MB", "left", "alone"
    ]  # fmt: skip
    # of the last run alone
    assert "RegionBind: query split (2x)" in text


def test_explanation_names_what_never_acted(sd):
    never, later = (METHODS["Emphasize"].where(steps=s) for s in ((0.1, 0.4), (0.5, 1)))
    with foveate.modulate(sd.pipe, [never, METHODS["RegionBind"], later]) as run:
        assert run.explain().idle == ()
        sd(prompt=PROMPT, steps=2)
        (line,) = run.explain().idle
        assert line.startswith("Emphasize never acted: its window is (0.1, 0.4), and the run had 2")
        assert str(run.explain()).splitlines()[-1] == line
        sd(prompt=PROMPT, steps=8)
        assert run.explain().idle == ()


# undo


class Breaks(Modulation):
    kinds = frozenset({"self", "cross", "joint"})

    def plan(self, site, q, k, v):
        raise RuntimeError("broken on purpose")


def test_an_exception_restores_everything(tiny):
    want = tiny(prompt=PROMPT)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        foveate.modulate(tiny.pipe, [Breaks(SCENE)]),
    ):
        tiny(prompt=PROMPT)
    assert torch.equal(tiny(prompt=PROMPT), want)


def test_an_encode_prompt_of_the_user_stays(sd):
    def mine(*args, **kwargs):
        return type(sd.pipe).encode_prompt(sd.pipe, *args, **kwargs)

    sd.pipe.encode_prompt = mine
    try:
        with foveate.modulate(sd.pipe, [METHODS["RegionBind"]]):
            sd(prompt=PROMPT)
        assert sd.pipe.encode_prompt is mine
        run = foveate.modulate(sd.pipe, [METHODS["RegionBind"]])
        sd.pipe.encode_prompt = later = mine.__get__(sd.pipe)
        run.remove()
        assert sd.pipe.encode_prompt is later
    finally:
        del sd.pipe.encode_prompt


def test_remove_twice(sd):
    run = foveate.modulate(sd.pipe, [METHODS["RegionBind"]])
    run.remove()
    run.remove()
    assert run.explain().layers


# operators underneath


def test_with_an_operator_that_sees_everything(tiny):
    mods = [METHODS["RegionBind"], METHODS["Emphasize"], METHODS["ObjectFocus"]]
    with foveate.modulate(tiny.pipe, mods):
        want = tiny(prompt=PROMPT)
    for processor in (LocalAttnProcessor(radius=64), FoveatedAttnProcessor(radius=64)):
        with foveate.apply(tiny.pipe, processor) as handle:
            with foveate.modulate(tiny.pipe, mods):
                torch.testing.assert_close(tiny(prompt=PROMPT), want, rtol=1e-3, atol=1e-5)
            assert any(row.forwards for row in handle.report().layers)


def test_with_a_narrow_operator(flux):
    with foveate.apply(flux.pipe, LocalAttnProcessor(radius=2)) as handle:
        plain = flux(prompt=PROMPT)
        with foveate.modulate(flux.pipe, [METHODS["RegionBind"]]) as run:
            got = flux(prompt=PROMPT)
        assert not torch.allclose(got, plain, atol=1e-6)
        assert torch.equal(flux(prompt=PROMPT), plain)
    assert all(row.operator == "local" for row in handle.report().layers)
    assert all("further head dimensions" in str(row.did) for row in run.explain().layers)


def test_the_operator_may_leave_first(flux):
    want = flux(prompt=PROMPT)
    handle = foveate.apply(flux.pipe, SoftmaxAttnProcessor())
    run = foveate.modulate(flux.pipe, [METHODS["RegionBind"]])
    handle.remove()
    run.remove()
    assert torch.equal(flux(prompt=PROMPT), want)


@pytest.mark.parametrize(
    ("processor", "method", "what"),
    [
        (LinearAttnProcessor(), "RegionBind", "linear attention cannot carry a text bias"),
        (AgentAttnProcessor(agents=6), "ObjectFocus", "agent attention cannot carry a text bias"),
        (LocalAttnProcessor(radius=3), "SelfTemperature", "local attention cannot carry a key sc"),
    ],
)
def test_what_an_operator_cannot_carry_is_refused(flux, processor, method, what):
    with foveate.apply(flux.pipe, processor), pytest.raises(NotImplementedError, match=what):
        foveate.modulate(flux.pipe, [METHODS[method]])


def test_agents_see_text_by_its_weight(flux):
    agents = AgentAttnProcessor(agents=6)
    with foveate.apply(flux.pipe, agents):
        plain = flux(prompt=PROMPT)
        with foveate.modulate(flux.pipe, [METHODS["Emphasize"]]):
            assert not torch.allclose(flux(prompt=PROMPT), plain, atol=1e-6)


def test_edits_of_the_picture_run_beside_operators_of_it(sd):
    # text is met in other layers than the picture on a UNet
    with (
        foveate.apply(sd.pipe, LinearAttnProcessor()),
        foveate.modulate(sd.pipe, [METHODS["RegionBind"]]) as run,
    ):
        sd(prompt=PROMPT)
    assert all("query split" in str(row.did) for row in run.explain().layers)


# memory


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_no_self_attention_map_is_made(family):
    tiny = Tiny(family)
    size, tokens = {"sd": ((128, 192), 32 * 48), "flux": ((96, 64), 48 * 32)}[family]
    mods = [*METHODS.values(), foveate.SpanMaps(SCENE)]
    with LargestTensor() as stock:
        tiny(size, prompt=PROMPT, steps=1)
    with LargestTensor() as log, foveate.modulate(tiny.pipe, mods):
        tiny(size, prompt=PROMPT, steps=1)
    assert log.elements < tokens**2 / 4
    assert log.elements <= 2 * stock.elements


# errors before the first step


class ReplacesValues(Modulation):
    edits = frozenset({"values"})

    def plan(self, site, q, k, v):
        return Plan(values=v * 2)


def test_conflicts_are_named(sd):
    one, two = ReplacesValues(SCENE), ReplacesValues(SCENE)
    with pytest.raises(ValueError, match="ReplacesValues and ReplacesValues conflict in .*values"):
        foveate.modulate(sd.pipe, [one, two])
    apart = [one.where(steps=(0, 0.5)), two.where(steps=(0.5, 1))]
    with foveate.modulate(sd.pipe, apart):
        sd(prompt=PROMPT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], "list of modulations is empty"),
        (lambda: [SCENE], "expected a modulation"),
        (lambda: [METHODS["RegionBind"].where(layers="*attn1")], "matches only self layers"),
        (lambda: [METHODS["RegionBind"].where(layers="mid.*")], "matches no attention layer; near"),
        (lambda: [METHODS["RegionBind"].where(heads=[7])], r"asks for heads \[7\]"),
        (lambda: [METHODS["RegionBind"].where(steps=(0.5, 2))], "steps must be"),
        (lambda: [METHODS["RegionBind"].where(branch="left")], "branch must be"),
        (lambda: [METHODS["RegionBind"].where(stride=0)], "stride must be"),
        (lambda: [METHODS["RegionBind"].where(heads=[])], "heads must be one or more"),
        (lambda: [METHODS["RegionBind"].where(heads=3)], "heads must be a list, got 3"),
        (
            lambda: [METHODS["RegionBind"].where(steps=0.5)],
            r"steps must be \(start, end\), got 0.5",
        ),
        (lambda: [foveate.SelfTemperature(0)], "factor must be > 0"),
        (lambda: [foveate.SelfTemperature("2")], "factor must be > 0 and finite, got '2'"),
        (lambda: [foveate.SelfTemperature(float("inf"))], "factor must be > 0 and finite, got inf"),
        (lambda: [foveate.Emphasize(SCENE, {"cat": "2"})], "strength of 'cat' must be a number"),
        (lambda: [foveate.Emphasize(SCENE, {})], "strengths must be a mapping .*{'cat': 2.0}, got"),
        (lambda: [foveate.AttentionReweight(SCENE, 2.0)], "strengths must be a mapping"),
        (lambda: [foveate.RegionBind(SCENE, alone="x")], "alone must lie in"),
        (
            lambda: [foveate.AttentionCouple(SCENE, ["a cat"])],
            "needs a prompt for a region, such as",
        ),
        (lambda: [foveate.AttentionReplace("x", None)], r"needs a foveate\.Scene, got None"),
        (lambda: [foveate.AttentionReplace(None, SCENE)], "needs a source prompt"),
        (lambda: [foveate.RegionBind(None)], r"needs a foveate\.Scene, got None"),
        (lambda: [foveate.Emphasize(SCENE, {"owl": 2})], "'owl' is no phrase"),
        (lambda: [foveate.Emphasize(SCENE, {"cat": -1})], "strength of 'cat'"),
        (lambda: [foveate.ObjectFocus(foveate.Scene("a [cat]{a}"))], "has one; mark two"),
        (lambda: [foveate.RegionBind(foveate.Scene("a [cat]{a}"))], "needs a Scene with regions"),
        (lambda: [foveate.RegionBind("a cat")], r"needs a foveate\.Scene"),
        (
            lambda: [foveate.RegionBind(scene_of("b" * 90 + " by dog"))],
            "truncated away",
        ),
        (
            lambda: [
                foveate.RegionBind(
                    foveate.Scene("cat by dog", regions={"cat": (0, 0, 0.6, 1), "dog": RIGHT})
                )
            ],
            "regions of 'cat' and 'dog' overlap",
        ),
    ],
)
def test_wrong_use_is_refused_before_anything_changes(sd, make, message):
    with pytest.raises(ValueError, match=message):
        foveate.modulate(sd.pipe, make())


def test_a_modulation_for_no_layer_of_the_model(flux):
    class OnlyCross(Breaks):
        kinds = frozenset({"cross"})

    with pytest.raises(ValueError, match="OnlyCross matches no layer.*has joint"):
        foveate.modulate(flux.pipe, [OnlyCross(SCENE)])


def test_another_prompt_is_refused_before_the_first_step(tiny):
    calls = []
    hook = tiny.model.register_forward_hook(lambda *_: calls.append(1))
    with (
        foveate.modulate(tiny.pipe, [METHODS["RegionBind"]]),
        pytest.raises(ValueError, match=r"encodes 'a cat', not .*prompt=scene\.prompt"),
    ):
        tiny(prompt="a cat")
    hook.remove()
    assert not calls


def test_a_failed_call_lends_the_next_one_no_prompt(tiny, monkeypatch):
    with foveate.modulate(tiny.pipe, [METHODS["RegionBind"]]):
        with monkeypatch.context() as patch:
            patch.setattr(tiny.pipe.scheduler, "set_timesteps", None)  # after encode_prompt
            with pytest.raises(TypeError):
                tiny(prompt=PROMPT)
        with pytest.raises(ValueError, match="encodes 'a cat', not"):
            tiny(prompt="a cat")
        tiny(prompt=PROMPT)


def test_text_cut_by_the_call_is_refused_before_the_first_step(flux):
    scene = scene_of("a cat by a very long dog")
    with (
        foveate.modulate(flux.pipe, [foveate.RegionBind(scene)]),
        pytest.raises(ValueError, match="truncated away.*max_sequence_length"),
    ):
        flux(prompt=scene.prompt, max_sequence_length=8)


def test_flux_needs_a_scene_to_know_the_negative_prompt(flux):
    with pytest.raises(ValueError, match="branch='cond' needs a Scene"):
        foveate.modulate(flux.pipe, [foveate.SelfTemperature(2).where(branch="cond")])


def test_a_model_without_its_pipeline(sd):
    with pytest.raises(ValueError, match="modulate needs the pipeline"):
        foveate.modulate(sd.model, [METHODS["RegionBind"]])


def test_modulated_twice(sd):
    with (
        foveate.modulate(sd.pipe, [METHODS["RegionBind"]]),
        pytest.raises(ValueError, match="is modulated already"),
    ):
        foveate.modulate(sd.pipe, [METHODS["Emphasize"]])


def test_an_operator_comes_before_modulations(flux):
    with (
        foveate.modulate(flux.pipe, [METHODS["RegionBind"]]),
        pytest.raises(ValueError, match="is modulated.*put apply on first"),
    ):
        foveate.apply(flux.pipe, SoftmaxAttnProcessor())


def test_overlap_on_request():
    scene = foveate.Scene("cat by dog", regions={"cat": (0, 0, 0.6, 1), "dog": RIGHT})
    foveate.RegionBind(scene, overlap=True)
    foveate.RegionBind(scene, hard=False)
