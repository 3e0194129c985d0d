"""StructuredText and AttentionCouple equal their formulas inside of stock pipelines."""

import functools

import pytest
import torch

import foveate
from foveate.kernels.coverage import coverage
from modulation_oracle import Watched
from oracles import FLOAT32, FLOAT64, LargestTensor, dense
from tiny_pipelines import Tiny

PROMPT = "red cat by big dog"
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
SCENE = foveate.Scene(PROMPT, regions={"red cat": LEFT, "big dog": RIGHT})
# on an axis with one token a letter, behind a start token: 6 letters, 2, 6
INSIDE = {"red cat": slice(1, 7), "big dog": slice(9, 15)}
COUPLE = {"a red cat": "red cat", "big dog": (0.5, 0.25, 1, 1)}
TOLERANCE = {torch.float32: FLOAT32, torch.float64: FLOAT64}


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def sd(request):
    tiny = Tiny("sd")
    tiny.pipe.to(request.param)
    tiny.dtype = request.param
    return tiny


@pytest.fixture(scope="module")
def pixart():
    return Tiny("pixart_t5")


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux", num_layers=1)


def encode(tiny, *texts):
    """Embeddings [T, C] of texts, one by one."""
    with torch.no_grad():
        return [tiny.pipe.encode_prompt(text, "cpu", 1, False)[0][0] for text in texts]


def watched(tiny, modulations, **arguments):
    """The middle cross-attention layer over one step, and what was done."""
    block = tiny.model.mid_block.attentions[0].transformer_blocks[0]
    with Watched(block.attn2) as seen, foveate.modulate(tiny.pipe, modulations) as run:
        tiny(**{"prompt": PROMPT, "steps": 1, **arguments})
    return seen, run


# what both keep


@pytest.fixture(params=["sd", "pixart", "flux"])
def tiny(request):
    return Tiny("sd") if request.param == "sd" else request.getfixturevalue(request.param)


def methods(tiny):
    couple = [foveate.AttentionCouple(SCENE, COUPLE)]
    structured = [foveate.StructuredText(SCENE), foveate.StructuredText(SCENE, conjunction=True)]
    return couple if tiny.name == "flux" else couple + structured


def test_what_changes_nothing_is_bit_equal(tiny):
    call = (
        {"prompt": PROMPT, "max_sequence_length": 24} if tiny.name != "sd" else {"prompt": PROMPT}
    )
    want = tiny(**call)
    nothing = [foveate.AttentionCouple(SCENE, COUPLE, base=1.0)]
    nothing += [foveate.AttentionReweight(SCENE, {"red cat": 1.0})]
    nothing += [one.where(steps=(0.5, 0.5)) for one in methods(tiny)[1:2]]
    with foveate.modulate(tiny.pipe, nothing):
        assert torch.equal(tiny(**call), want)
    for one in methods(tiny):
        with foveate.modulate(tiny.pipe, [one]):
            assert not torch.equal(tiny(**call), want)
        with foveate.modulate(tiny.pipe, [one.where(steps=(0.5, 0.5))]):
            assert torch.equal(tiny(**call), want)
    assert torch.equal(tiny(**call), want)
    assert not tiny.model._forward_pre_hooks
    assert "encode_prompt" not in vars(tiny.pipe)


def test_the_unconditional_half_is_untouched(tiny):
    call = {"prompt": PROMPT, "negative_prompt": "dog", "steps": 1}
    call |= {"true_cfg_scale": 3.0} if tiny.name == "flux" else {}
    call |= {"max_sequence_length": 24} if tiny.name != "sd" else {}
    seen = []
    hook = tiny.model.register_forward_hook(lambda model, args, out: seen.append(out[0]))
    tiny(**call)
    with foveate.modulate(tiny.pipe, methods(tiny)[:2]):
        tiny(**call)
    hook.remove()
    rows = [row for out in seen for row in out]
    # negative first in a batch, last as a forward of its own
    uncond, cond = (1, 0) if tiny.name == "flux" else (0, 1)
    assert torch.equal(rows[2 + uncond], rows[uncond])
    assert not torch.equal(rows[2 + cond], rows[cond])


# StructuredText


def test_values_are_the_mean_of_the_phrases_taken_alone(sd):
    seen, run = watched(sd, [foveate.StructuredText(SCENE)])
    whole, *alone = encode(sd, PROMPT, "red cat", "big dog")
    values = [seen.project("to_v", whole)]
    for place, text in zip(INSIDE.values(), alone, strict=True):
        mixed = whole.clone()
        mixed[place] = text[1:7]
        values.append(seen.project("to_v", mixed))
    want = sum(seen.weights(1, whole) @ v for v in values) / 3
    torch.testing.assert_close(seen.out[1].double(), want, **TOLERANCE[sd.dtype])
    # and that is not what the prompt alone gives
    assert not torch.allclose(want, seen.weights(1, whole) @ values[0], rtol=1e-3)
    assert "StructuredText: edited tensors (1x)" in str(run.explain())


def test_conjunctions_are_a_mean_over_keys(sd):
    seen, run = watched(sd, [foveate.StructuredText(SCENE, conjunction=True)])
    whole, *alone = encode(sd, PROMPT, "red cat", "big dog")
    mixed, every = [whole], whole.clone()
    for place, text in zip(INSIDE.values(), alone, strict=True):
        every[place] = text[1:7]
        mixed.append(whole.clone())
        mixed[-1][place] = text[1:7]
    value = seen.project("to_v", every)
    want = sum(seen.weights(1, text) for text in mixed) / 3 @ value
    torch.testing.assert_close(seen.out[1].double(), want, **TOLERANCE[sd.dtype])
    (row, *_) = run.explain().layers
    assert row.did == {"StructuredText: branches": 1}
    assert row.calls == 3


def test_phrases_of_a_parser():
    scene = foveate.Scene("a red cat", parser=lambda text: [text[2:]])
    assert list(scene.phrases) == ["red cat"]
    with pytest.raises(ValueError, match="no phrase 'blue cat'"):
        foveate.Scene("a red cat", parser=lambda text: ["blue cat"])


def test_phrases_are_encoded_with_the_settings_of_the_prompt(pixart, monkeypatch):
    calls = []
    stock = type(pixart.pipe).encode_prompt

    @functools.wraps(stock)
    def noted(*args, **kwargs):
        calls.append(kwargs)
        return stock(*args, **kwargs)

    monkeypatch.setattr(type(pixart.pipe), "encode_prompt", noted)
    with foveate.modulate(pixart.pipe, [foveate.StructuredText(SCENE)]):
        pixart(prompt=PROMPT, steps=1, max_sequence_length=28)
    assert [call["max_sequence_length"] for call in calls] == [28, 28]
    assert calls[1]["prompt"] == ["red cat", "big dog"]


def test_a_failed_call_lends_the_next_one_no_settings(pixart, monkeypatch):
    with foveate.modulate(pixart.pipe, [foveate.StructuredText(SCENE)]):
        want = pixart(prompt=PROMPT, steps=1, max_sequence_length=30)
        with monkeypatch.context() as patch:
            patch.setattr(pixart.pipe.scheduler, "set_timesteps", None)  # after encode_prompt
            with pytest.raises(TypeError):
                pixart(prompt=PROMPT, steps=1)
        assert torch.equal(pixart(prompt=PROMPT, steps=1, max_sequence_length=30), want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: foveate.StructuredText(foveate.Scene("a " * 80 + "[cat]{a}")), "truncated"),
        (lambda: foveate.StructuredText(foveate.Scene("a [red]{a}der cat")), "other tokens in"),
        (lambda: foveate.AttentionCouple(SCENE, {}), "needs a prompt for a region"),
        (lambda: foveate.AttentionCouple(SCENE, {"a cat": "owl"}), "for the region 'owl', but"),
        (lambda: foveate.AttentionCouple(SCENE, {"a cat": (0, 0, 2, 1)}), "box of 'a cat'"),
        (lambda: foveate.AttentionCouple(SCENE, {"a": LEFT}, base=2), "base must lie"),
        (
            lambda: foveate.AttentionCouple(SCENE, {"a": LEFT, "b": (0.4, 0, 1, 1)}),
            "regions of 'a' and 'b' overlap.*hard=False",
        ),
        (
            lambda: foveate.StructuredText(foveate.Scene("[cat]{a}", chunked=True)),
            "which chunked prompts are not",
        ),
    ],
)
def test_wrong_use_is_refused_before_anything_changes(sd, make, message):
    with pytest.raises(ValueError, match=message):
        foveate.modulate(sd.pipe, [make()])
    assert "encode_prompt" not in vars(sd.pipe)


def test_what_a_joint_softmax_does_not_allow_is_refused(flux):
    with pytest.raises(ValueError, match="StructuredText matches no layer.*has joint"):
        foveate.modulate(flux.pipe, [foveate.StructuredText(SCENE)])
    with pytest.raises(ValueError, match="narrow it by steps= alone"):
        foveate.modulate(flux.pipe, [foveate.AttentionCouple(SCENE, COUPLE).where(stride=2)])
    with pytest.raises(NotImplementedError, match="share the text axis"):
        foveate.modulate(Tiny("sd3").pipe, [foveate.AttentionCouple(SCENE, COUPLE)])


def test_two_that_bring_texts_conflict(sd):
    couple = foveate.AttentionCouple(SCENE, COUPLE)
    with pytest.raises(ValueError, match="AttentionCouple and AttentionCouple conflict"):
        foveate.modulate(sd.pipe, [couple, couple])
    structured = foveate.StructuredText(SCENE)
    with pytest.raises(ValueError, match="StructuredText conflict.*replaces the values"):
        foveate.modulate(sd.pipe, [structured, foveate.StructuredText(SCENE, conjunction=True)])


def test_embeddings_of_another_length_are_refused(pixart):
    with torch.no_grad():
        embeds, mask, *_ = pixart.pipe.encode_prompt(PROMPT, False, max_sequence_length=30)
    given = {"prompt_embeds": embeds, "prompt_attention_mask": mask, "guidance_scale": 1.0}
    with (
        foveate.modulate(pixart.pipe, [foveate.StructuredText(SCENE)]),
        pytest.raises(ValueError, match="encoded to 24 tokens, the prompt to 30"),
    ):
        pixart(prompt=None, **given)


# AttentionCouple in cross-attention


def outputs(seen, texts):
    """The row's attention to each text, [R, H, N, D]."""
    return torch.stack([seen.weights(1, t) @ seen.project("to_v", t) for t in texts])


@pytest.mark.parametrize("base", [0.0, 0.3])
def test_each_region_attends_to_its_own_prompt(sd, base):
    seen, run = watched(sd, [foveate.AttentionCouple(SCENE, COUPLE, base=base)])
    grid = next(g for g in ((12, 16), (6, 8)) if g[0] * g[1] == seen.out.shape[2])
    inside = [coverage(box, *grid).flatten() > 0.5 for box in (LEFT, (0.5, 0.25, 1, 1))]
    outs = outputs(seen, encode(sd, PROMPT, *COUPLE))
    want = outs[0].clone()
    for out, pixels in zip(outs[1:], inside, strict=True):
        want[:, pixels] = base * outs[0][:, pixels] + (1 - base) * out[:, pixels]
    assert not torch.stack(inside).any(0).all()
    torch.testing.assert_close(seen.out[1].double(), want, **TOLERANCE[sd.dtype])
    (row, *_) = run.explain().layers
    form = "branches" if base else "query split"
    assert row.did == {f"AttentionCouple: {form}": 1}
    assert row.calls == (4 if base else 3)


def test_regions_that_share_a_cell_have_one_prompt_each(sd):
    boxes = {"a red cat": (0, 0, 0.6, 1), "big dog": (0.6, 0.4, 0.62, 0.45), "dog": (0.9, 0, 1, 1)}
    seen, _ = watched(sd, [foveate.AttentionCouple(SCENE, boxes)])
    grid = next(g for g in ((12, 16), (6, 8)) if g[0] * g[1] == seen.out.shape[2])
    cover = torch.stack([coverage(box, *grid).flatten() for box in boxes.values()])
    tiny = cover[1].argmax()
    assert cover[0, tiny] > 0.5  # another region's cell, were it not for the small one
    inside = cover > 0.5
    inside[:, tiny] = torch.tensor([False, True, False])
    outs = outputs(seen, encode(sd, PROMPT, *boxes))
    want = outs[0].clone()
    for out, pixels in zip(outs[1:], inside, strict=True):
        want[:, pixels] = out[:, pixels]
    torch.testing.assert_close(seen.out[1].double(), want, **TOLERANCE[sd.dtype])


def test_soft_regions_mix_their_prompts(sd):
    boxes = {"a red cat": (0, 0, 0.62, 1), "big dog": (0.41, 0.3, 1, 1)}
    seen, _ = watched(sd, [foveate.AttentionCouple(SCENE, boxes, hard=False, base=0.2)])
    grid = next(g for g in ((12, 16), (6, 8)) if g[0] * g[1] == seen.out.shape[2])
    cover = torch.stack([coverage(box, *grid).flatten().double() for box in boxes.values()])
    assert (cover.sum(0) > 1).any()
    shares = 0.8 * cover / cover.sum(0).clamp_min(1)
    weights = torch.cat([1 - shares.sum(0, keepdim=True), shares])
    outs = outputs(seen, encode(sd, PROMPT, *boxes))
    want = (weights[:, None, :, None] * outs).sum(0)
    torch.testing.assert_close(seen.out[1].double(), want, **TOLERANCE[sd.dtype])


def test_maps_count_the_scenes_own_tokens(sd):
    couple = foveate.AttentionCouple(SCENE, COUPLE)
    block = sd.model.mid_block.attentions[0].transformer_blocks[0]
    reader = foveate.SpanMaps(SCENE).where(layers="mid_block*")
    with Watched(block.attn2) as seen, foveate.modulate(sd.pipe, [couple, reader]) as run:
        sd(prompt=PROMPT, steps=1)
        maps = run.span_maps()["red cat"][0]
    (text,) = encode(sd, PROMPT)
    want = seen.weights(1, text)[..., INSIDE["red cat"]].sum(-1).mean(0).view(maps.shape)
    want[:, : maps.shape[1] // 2] = 0  # the left half sees another prompt
    want[maps.shape[0] // 3 :, maps.shape[1] // 2 :] = 0
    free = want > 0
    torch.testing.assert_close(maps.double()[free], want[free], **TOLERANCE[sd.dtype])
    assert (maps[:, : maps.shape[1] // 2] == 0).all()


def test_padding_of_every_prompt_is_hidden(pixart):
    attn = pixart.model.transformer_blocks[0].attn2
    couple = foveate.AttentionCouple(SCENE, COUPLE)
    with torch.no_grad():
        encoded = [
            pixart.pipe.encode_prompt(text, False, max_sequence_length=24)[:2]
            for text in (PROMPT, *COUPLE)
        ]
        texts = [pixart.model.caption_projection(text)[0][mask[0].bool()] for text, mask in encoded]
    assert len({len(text) for text in texts}) == 3
    assert max(map(len, texts)) < 24
    with Watched(attn) as seen, foveate.modulate(pixart.pipe, [couple]):
        pixart(prompt=PROMPT, steps=1)
    cover = [coverage(box, 4, 6).flatten() for box in (LEFT, (0.5, 0.25, 1, 1))]
    outs = outputs(seen, texts)
    want = outs[0].clone()
    for out, share in zip(outs[1:], cover, strict=True):
        want[:, share > 0.5] = out[:, share > 0.5]
    torch.testing.assert_close(seen.out[1].double(), want, **FLOAT32)


# AttentionCouple in joint attention


class Joint:
    """q, k, v and the answer of Flux's first double-stream layer, [H, N, D]."""

    def __init__(self, tiny, modulations):
        calls = []
        processor = tiny.model.transformer_blocks[0].attn.processor
        with foveate.modulate(tiny.pipe, modulations) as run:
            ours = tiny.model.transformer_blocks[0].attn.processor
            assert ours is not processor
            attend = ours.attend

            def spy(q, k, v, *, scale, special):
                out = attend(q, k, v, scale=scale, special=special)
                calls.append([x[0].double() for x in (q, k, v, out)])
                return out

            object.__setattr__(ours, "attend", spy)
            self.picture = tiny(prompt=PROMPT, steps=1, max_sequence_length=20)
            object.__setattr__(ours, "attend", attend)
        self.q, self.k, self.v, self.out = calls[0]
        self.run = run


@pytest.mark.parametrize("hard", [True, False])
def test_prompts_stand_behind_each_other_in_joint_layers(flux, hard):
    call = Joint(flux, [foveate.AttentionCouple(SCENE, COUPLE, hard=hard)])
    text, grid = 20, (8, 12)
    pixels = torch.arange(3 * text, 3 * text + grid[0] * grid[1])
    assert call.q.shape[1] == 3 * text + len(pixels)
    cover = [coverage(box, *grid).flatten().double() for box in (LEFT, (0.5, 0.25, 1, 1))]
    want = torch.zeros_like(call.out)
    weights = [1 - sum(cover), *cover]
    for number in range(3):
        own = torch.arange(number * text, (number + 1) * text)
        keys = torch.cat([own, pixels])
        out = dense(*(x[None] for x in (call.q, call.k[:, keys], call.v[:, keys])))[0]
        want[:, pixels] += weights[number][:, None] * out[:, pixels]
        region = pixels if number == 0 else pixels[cover[number - 1] > (0.5 if hard else 0)]
        keys = torch.cat([own, region])
        want[:, own] = dense(*(x[None] for x in (call.q, call.k[:, keys], call.v[:, keys])))[0][
            :, own
        ]
    torch.testing.assert_close(call.out, want, **FLOAT32)
    assert all("AttentionCouple" in str(row.did) for row in call.run.explain().layers)


def test_joint_layers_take_one_prompt_a_batch(flux):
    with (
        foveate.modulate(flux.pipe, [foveate.AttentionCouple(SCENE, COUPLE)]),
        pytest.raises(ValueError, match="draw one prompt at a time"),
    ):
        flux(prompt=[PROMPT, "an owl"], max_sequence_length=20)


def test_the_negative_pass_keeps_its_text(flux):
    seen = []
    hook = flux.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["encoder_hidden_states"].shape[1]),
        with_kwargs=True,
    )
    call = {"true_cfg_scale": 3.0, "negative_prompt": "dog", "max_sequence_length": 20}
    couple = foveate.AttentionCouple(SCENE, COUPLE).where(steps=(0, 0.5))
    with foveate.modulate(flux.pipe, [couple]):
        flux(prompt=PROMPT, steps=2, **call)
    hook.remove()
    assert seen == [60, 20, 20, 20]


def test_prompts_of_regions_work_with_an_operator(flux):
    couple = foveate.AttentionCouple(SCENE, COUPLE)
    call = {"prompt": PROMPT, "max_sequence_length": 20}
    with foveate.modulate(flux.pipe, [couple]):
        want = flux(**call)
    with (
        foveate.apply(flux.pipe, foveate.LocalAttnProcessor(radius=64)),
        foveate.modulate(flux.pipe, [couple]),
    ):
        torch.testing.assert_close(flux(**call), want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_no_self_attention_map_is_made(family):
    tiny = Tiny(family)
    size, tokens = {"sd": ((128, 192), 32 * 48), "flux": ((96, 64), 48 * 32)}[family]
    mods = [foveate.AttentionCouple(SCENE, COUPLE, hard=False)]
    mods += [foveate.StructuredText(SCENE)] if family == "sd" else []
    call = {"prompt": PROMPT, "steps": 1}
    call |= {"max_sequence_length": 20} if family == "flux" else {}
    with LargestTensor() as log, foveate.modulate(tiny.pipe, mods):
        tiny(size, **call)
    assert log.elements < tokens**2 / 4
