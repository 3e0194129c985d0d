"""Prompt-to-prompt edits equal their formulas, with A and A* of a source and an edited row."""

import types

import pytest
import torch

import foveate
from foveate.attn_processors.modulation.alignment import align_prompts
from foveate.attn_processors.modulation.text_axis import TextAxis
from modulation_oracle import Watched
from oracles import FLOAT32, FLOAT64, LargestTensor
from tiny_pipelines import Tiny, clip_tokenizer

SOURCE = "red cat on gray"
SWAPPED = foveate.Scene("red dog on gray", phrases=["dog"])
LONGER = foveate.Scene("red horse on gray", phrases=["horse"])
REFINED = foveate.Scene("red cat by owl on gray", phrases=["owl", "red cat"])
TOLERANCE = {torch.float32: FLOAT32, torch.float64: FLOAT64}
LENGTH = 77


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def sd(request):
    tiny = Tiny("sd")
    tiny.pipe.to(request.param)
    tiny.dtype = request.param
    return tiny


def generators():
    """The same noise for both."""
    return [torch.Generator().manual_seed(4) for _ in range(2)]


def call(tiny, edited, modulations, attn=None, **arguments):
    """One step of [source, edited]; rows 2 and 3 of the batch are conditional."""
    attn = attn or tiny.model.mid_block.attentions[0].transformer_blocks[0].attn2
    with Watched(attn) as seen, foveate.modulate(tiny.pipe, modulations) as run:
        prompts = [SOURCE, edited.prompt]
        seen.picture = tiny(prompt=prompts, steps=1, generator=generators(), **arguments)
    return seen, run


def axis():
    pipe = types.SimpleNamespace(tokenizer=clip_tokenizer())
    return TextAxis(pipe, type("UNet2DConditionModel", (torch.nn.Module,), {})())


# alignment: one token a letter, a start token, an end token, padding


def test_swapped_words_are_matched_letter_by_letter():
    found = align_prompts(axis(), SOURCE, SWAPPED.prompt, LENGTH)
    assert found.is_replacement
    matrix = found.replaced(torch.zeros(1, dtype=torch.float64))
    assert torch.equal(matrix, torch.eye(LENGTH, dtype=torch.float64))
    assert found.shared(torch.zeros(1)).diagonal()[4:7].tolist() == [0, 0, 0]


def test_words_of_other_lengths_share_evenly():
    # c a t -> h o r s e: source tokens 4 to 6, edited ones 4 to 8
    matrix = align_prompts(axis(), SOURCE, LONGER.prompt, LENGTH).replaced(torch.zeros(1))
    assert torch.equal(matrix[4:7, 4:9], torch.full((3, 5), 0.2))
    assert matrix[4:7].sum() == pytest.approx(3)
    assert torch.equal(matrix[7:14, 9:16], torch.eye(7))  # "ongray" and the end
    assert torch.equal(matrix[16:, 16:], torch.eye(LENGTH - 16))  # padding stays


def test_new_words_have_no_source():
    found = align_prompts(axis(), SOURCE, REFINED.prompt, LENGTH)
    assert not found.is_replacement
    matrix = found.shared(torch.zeros(1))
    new = (matrix.sum(0) == 0).nonzero()[:, 0].tolist()
    assert new == list(range(7, 12))  # b y o w l
    assert torch.equal(matrix[7:14, 12:19], torch.eye(7))


# the three edits


def test_replace_is_the_sources_attention(sd):
    for edited in (SWAPPED, LONGER):
        seen, run = call(sd, edited, [foveate.AttentionReplace(SOURCE, edited)])
        matrix = align_prompts(axis(), SOURCE, edited.prompt, LENGTH)
        matrix = matrix.replaced(torch.zeros(1, dtype=torch.float64))
        value = seen.project("to_v", seen.text[3])
        own = seen.weights(2, seen.text[2])
        want = torch.einsum("hns,st,htd->hnd", own, matrix, value)
        torch.testing.assert_close(seen.out[3].double(), want, **TOLERANCE[sd.dtype])
        assert "AttentionReplace: edited tensors (1x)" in str(run.explain())
        # the source is as ever, the edited row is not
        torch.testing.assert_close(
            seen.out[2].double(),
            own @ seen.project("to_v", seen.text[2]),
            **TOLERANCE[sd.dtype],
        )
        assert not torch.allclose(want, seen.weights(3, seen.text[3]) @ value, rtol=1e-3)


def test_refine_adds_the_new_words(sd):
    seen, run = call(sd, REFINED, [foveate.AttentionRefine(SOURCE, REFINED)])
    matrix = align_prompts(axis(), SOURCE, REFINED.prompt, LENGTH)
    matrix = matrix.shared(torch.zeros(1, dtype=torch.float64))
    mapped = seen.weights(2, seen.text[2]) @ matrix
    weights = torch.where(matrix.any(0), mapped, seen.weights(3, seen.text[3]))
    want = weights @ seen.project("to_v", seen.text[3])
    torch.testing.assert_close(seen.out[3].double(), want, **TOLERANCE[sd.dtype])
    (row, *_) = run.explain().layers
    assert row.did == {"AttentionRefine: branches": 1}


def test_reweight_is_a_factor_after_the_softmax(sd):
    reweight = foveate.AttentionReweight(REFINED, {"owl": -2.0, "red cat": 3.0})
    seen, _ = call(sd, REFINED, [reweight])
    factors = torch.ones(LENGTH, dtype=torch.float64)
    factors[9:12], factors[1:7] = -2, 3
    weights = seen.weights(3, seen.text[3]) * factors
    want = weights @ seen.project("to_v", seen.text[3])
    torch.testing.assert_close(seen.out[3].double(), want, **TOLERANCE[sd.dtype])


def test_edits_and_factors_come_together_in_any_order(sd):
    both = [
        foveate.AttentionRefine(SOURCE, REFINED),
        foveate.AttentionReweight(REFINED, {"owl": 2.0, "red cat": 0.5}),
    ]
    seen, _ = call(sd, REFINED, both)
    matrix = align_prompts(axis(), SOURCE, REFINED.prompt, LENGTH)
    matrix = matrix.shared(torch.zeros(1, dtype=torch.float64))
    mapped = seen.weights(2, seen.text[2]) @ matrix
    weights = torch.where(matrix.any(0), mapped, seen.weights(3, seen.text[3]))
    factors = torch.ones(LENGTH, dtype=torch.float64)
    factors[9:12], factors[1:7] = 2, 0.5
    want = (weights * factors) @ seen.project("to_v", seen.text[3])
    torch.testing.assert_close(seen.out[3].double(), want, **TOLERANCE[sd.dtype])
    other, _ = call(sd, REFINED, both[::-1])
    assert torch.equal(other.picture, seen.picture)


def test_maps_are_those_of_the_edit(sd):
    block = "mid_block*"
    reader = foveate.SpanMaps(REFINED).where(layers=block)
    edit = foveate.AttentionRefine(SOURCE, REFINED)
    seen, run = call(sd, REFINED, [edit, reader])
    matrix = align_prompts(axis(), SOURCE, REFINED.prompt, LENGTH)
    matrix = matrix.shared(torch.zeros(1, dtype=torch.float64))
    mapped = seen.weights(2, seen.text[2]) @ matrix
    weights = torch.where(matrix.any(0), mapped, seen.weights(3, seen.text[3])).mean(0)
    for name, place in (("owl", slice(9, 12)), ("red cat", slice(1, 7))):
        got = run.span_maps()[name][0].flatten().double()
        torch.testing.assert_close(got, weights[:, place].sum(-1), **TOLERANCE[sd.dtype])


def test_self_attention_of_the_source(sd):
    block = sd.model.mid_block.attentions[0].transformer_blocks[0]
    edit = foveate.SelfAttentionReplace(SOURCE, SWAPPED)
    hidden = []
    hook = block.attn1.register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    seen, run = call(sd, SWAPPED, [edit], attn=block.attn1)
    hook.remove()
    (x,) = hidden
    want = seen.weights(2, x[2]) @ seen.project("to_v", x[3])
    torch.testing.assert_close(seen.out[3].double(), want, **TOLERANCE[sd.dtype])
    small = foveate.SelfAttentionReplace(SOURCE, SWAPPED, max_tokens=48)
    _, run = call(sd, SWAPPED, [small])
    did = {row.layer: (row.did, row.left) for row in run.explain().layers}
    assert {bool(done) for done, _ in did.values()} == {True, False}
    assert all(done or left == {"nothing to edit": 1} for done, left in did.values())


def test_no_self_attention_map_is_made():
    tiny, size, tokens = Tiny("sd"), (128, 192), 32 * 48
    prompts = [SOURCE, SWAPPED.prompt]
    edits = [
        foveate.AttentionReplace(SOURCE, SWAPPED),
        foveate.SelfAttentionReplace(SOURCE, SWAPPED, max_tokens=tokens),
    ]
    with LargestTensor() as stock:
        tiny(size, prompt=prompts, steps=1, generator=generators())
    with LargestTensor() as log, foveate.modulate(tiny.pipe, edits) as run:
        tiny(size, prompt=prompts, steps=1, generator=generators())
    assert all(row.did for row in run.explain().layers)
    assert log.elements < tokens**2 / 4
    assert log.elements <= stock.elements


def test_all_of_the_source_is_the_source(sd):
    """Queries, keys and tokens of the source with its own values: attention is exchanged whole."""
    edited = foveate.Scene("red dog on gray", phrases=["dog"])
    mods = [
        foveate.AttentionReplace(SOURCE, edited),
        foveate.SelfAttentionReplace(SOURCE, edited),
    ]
    plain = sd(prompt=[SOURCE, edited.prompt], generator=generators())
    with foveate.modulate(sd.pipe, mods):
        both = sd(prompt=[SOURCE, edited.prompt], generator=generators())
    assert torch.equal(both[0], plain[0])
    assert not torch.equal(both[1], plain[1])


# refusals


def test_edits_need_both_prompts_in_one_batch(sd):
    with (
        foveate.modulate(sd.pipe, [foveate.AttentionReplace(SOURCE, SWAPPED)]),
        pytest.raises(ValueError, match=r"needs a row of 'red cat on gray'.*got 0 and 1"),
    ):
        sd(prompt=SWAPPED.prompt)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [foveate.AttentionReplace(SOURCE, REFINED)], "AttentionRefine serves that"),
        (lambda: [foveate.AttentionReplace(SWAPPED, SWAPPED)], "needs two prompts"),
        (lambda: [foveate.AttentionReweight(SWAPPED, {"owl": 2})], "'owl' is no phrase"),
        (lambda: [foveate.AttentionReweight(SWAPPED, {"dog": float("nan")})], "must be a number"),
        (
            lambda: [
                foveate.AttentionReplace(SOURCE, SWAPPED),
                foveate.AttentionRefine(SOURCE, SWAPPED),
            ],
            "AttentionReplace and AttentionRefine conflict",
        ),
        (
            lambda: [
                foveate.AttentionReplace(SOURCE, SWAPPED),
                foveate.Emphasize(SWAPPED, {"dog": 2}),
            ],
            "replaces the keys, the other edits the key bias",
        ),
    ],
)
def test_wrong_use_is_refused_before_anything_changes(sd, make, message):
    with pytest.raises(ValueError, match=message):
        foveate.modulate(sd.pipe, make())


def test_a_prompt_that_is_cut_is_refused_before_the_first_step(sd):
    long = foveate.Scene("a " * 80 + "owl", phrases=["a"])
    forwards = []
    hook = sd.model.register_forward_hook(lambda *_: forwards.append(1))
    with (
        foveate.modulate(sd.pipe, [foveate.AttentionRefine(SOURCE, long)]),
        pytest.raises(ValueError, match="would be truncated to 77"),
    ):
        sd(prompt=[SOURCE, long.prompt], generator=generators())
    hook.remove()
    assert not forwards


def test_joint_layers_are_refused():
    with pytest.raises(ValueError, match="AttentionReplace matches no layer.*has joint"):
        foveate.modulate(Tiny("flux").pipe, [foveate.AttentionReplace(SOURCE, SWAPPED)])
