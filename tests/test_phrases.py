"""Phrases to tokens: markup, look-up, tokenizers with offsets, truncation, chunks."""

import string
import types

import pytest
import torch
from transformers import LlamaTokenizer

import foveate
from foveate.attn_processors.modulation.phrases import find_phrase, read_markup
from foveate.attn_processors.modulation.text_axis import TextAxis
from tiny_pipelines import Tiny, clip_tokenizer, t5_tokenizer

TEXT = "a red circle left of a blue circle"


def axis_of(name, **tokenizers):
    """The text axis of a model class, with tokenizers as a pipeline would hold them."""
    pipe = types.SimpleNamespace(**tokenizers)
    return TextAxis(pipe, type(name, (torch.nn.Module,), {})())


def llama_tokenizer():
    letters = {c: i for i, c in enumerate(string.printable.strip(), start=4)}
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, **letters}
    return LlamaTokenizer(vocab=vocab, merges=[])


def decoded(tokenizer, prompt, positions, start=0):
    """What tokens at these positions say, without spaces and word ends."""
    ids = tokenizer(prompt)["input_ids"]
    text = "".join(tokenizer.convert_ids_to_tokens([ids[i - start] for i in positions]))
    return text.replace("</w>", "").replace("\u2581", "")


def test_markup():
    prompt, named = read_markup("a [red circle]{a} left of a [blue square]{b}")
    assert prompt == "a red circle left of a blue square"
    assert {n: [prompt[s:e] for s, e in r] for n, r in named.items()} == {
        "a": ["red circle"],
        "b": ["blue square"],
    }


def test_markup_of_one_phrase_in_two_places():
    scene = foveate.Scene("a [circle]{a} that is [red]{a}")
    assert scene.text("a") == "circle red"
    assert scene.prompt == "a circle that is red"


@pytest.mark.parametrize(
    ("prompt", "phrase", "found"),
    [
        ("a Red  circle", "red circle", "Red  circle"),
        (TEXT, "circle#2", "circle"),
        ("a scarred red car", "red", "red"),
        ("an [odd] (prompt)", "odd", "odd"),
        ("number #2 and number", "number #2", "number #2"),
    ],
)
def test_phrases_are_whole_words(prompt, phrase, found):
    start, end = find_phrase(prompt, phrase)
    assert prompt[start:end] == found
    if phrase == "circle#2":
        assert start == TEXT.rindex("circle")
    if phrase == "red":
        assert prompt[start - 1 : end + 1] in (" red ",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: foveate.Scene(TEXT, phrases=["blue squares"]),
            "no phrase 'blue squares'.*'blue c",
        ),
        (lambda: foveate.Scene(TEXT, phrases=["circle#3"]), r"occurrence 3.*2 time\(s\)"),
        (lambda: foveate.Scene(TEXT), "needs a phrase"),
        (lambda: foveate.Scene("a [red circle]{}"), "name of a marked phrase"),
        (lambda: foveate.Scene("[ ]{a} red"), r"must hold a word, got '\[ \]\{a\}'"),
        (lambda: foveate.Scene(TEXT, phrases=[" "]), "must hold a word"),
        (
            lambda: foveate.Scene(TEXT, phrases=["red circle"], nouns={"red circle": "star"}),
            "'star' is not in the phrase",
        ),
        (
            lambda: foveate.Scene(TEXT, phrases=["red circle"], nouns={"a": "star"}),
            "'a' is no phrase",
        ),
    ],
)
def test_errors_name_what_is_near(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nouns():
    scene = foveate.Scene("a [red circle of wood]{a}", nouns={"a": "circle"})
    start, end = scene.nouns["a"]
    assert scene.prompt[start:end] == "circle"
    for marked, noun in [
        ("red circle", "circle"),
        ("red circle,", "circle"),
        ("red t-shirt!", "t-shirt"),
    ]:
        scene = foveate.Scene(f"a [{marked}]{{a}}")
        start, end = scene.nouns["a"]
        assert scene.prompt[start:end] == noun
    scene = foveate.Scene("a cat & a dog", phrases=["&"])
    assert scene.nouns["&"] == (6, 7)


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer, llama_tokenizer])
def test_tokens_spell_the_phrase(make):
    tokenizer = make()
    axis = axis_of("FluxTransformer2DModel", tokenizer_2=tokenizer)
    for prompt, phrase in ((TEXT, "blue circle"), (TEXT, "circle"), (" Two  spaces", "two")):
        scene = foveate.Scene(prompt, phrases=[phrase])
        found = axis.tokens(scene.prompt, scene.phrases[phrase], 64)
        assert decoded(tokenizer, prompt, found).casefold() == phrase.replace(" ", "")


def test_repeated_phrase_has_its_own_tokens():
    axis = axis_of("UNet2DConditionModel", tokenizer=clip_tokenizer())
    scene = foveate.Scene(TEXT, phrases=["circle", "circle#2"])
    one, two = (axis.tokens(scene.prompt, scene.phrases[name], 77) for name in scene.phrases)
    assert max(one) < min(two)


def test_encoders_one_after_the_other():
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    pipe = types.SimpleNamespace(tokenizer=clip, tokenizer_2=clip_tokenizer(), tokenizer_3=t5)
    axis = TextAxis(pipe, type("SD3Transformer2DModel", (torch.nn.Module,), {})())
    scene = foveate.Scene("a red cat", phrases=["red cat"])
    found = axis.tokens(scene.prompt, scene.phrases["red cat"], 77 + 16)
    first, second = ([i for i in found if i < 77], [i for i in found if i >= 77])
    assert decoded(clip, scene.prompt, first) == "redcat"
    assert decoded(t5, scene.prompt, second, start=77) == "redcat"


def test_truncated_phrase_is_refused():
    axis = axis_of("UNet2DConditionModel", tokenizer=clip_tokenizer())
    scene = foveate.Scene("a " * 70 + "red cat", phrases=["red cat"])
    for length in (None, 77):
        with pytest.raises(ValueError, match="'red cat' is truncated away.*keeps 76"):
            axis.tokens(scene.prompt, scene.phrases["red cat"], length)


def test_the_last_token_that_fits_is_found_and_the_next_refused():
    axis = axis_of("UNet2DConditionModel", tokenizer=clip_tokenizer())
    fits = foveate.Scene("a " * 74 + "b c c c", phrases=["b"])
    assert axis.tokens(fits.prompt, fits.phrases["b"], 77) == (75,)
    late = foveate.Scene("a " * 75 + "b c c c", phrases=["b"])
    with pytest.raises(ValueError, match="truncated"):
        axis.tokens(late.prompt, late.phrases["b"], 77)


def test_words_stop_where_the_text_is_cut():
    axis = axis_of("UNet2DConditionModel", tokenizer=clip_tokenizer())
    scene = foveate.Scene("b " * 90, phrases=["b"])
    assert axis.words(scene.prompt, 77) == tuple(range(1, 76))


def test_long_prompts_in_chunks():
    axis = axis_of("UNet2DConditionModel", tokenizer=clip_tokenizer())
    scene = foveate.Scene("a " * 80 + "b", phrases=["b"], chunked=True)
    # 75 tokens a chunk, each chunk with a start token
    assert axis.tokens(scene.prompt, scene.phrases["b"], 154, chunked=True) == (77 + 1 + 5,)


def test_textual_inversion_stands_for_several_tokens():
    tiny = Tiny("sd")
    tokenizer = tiny.pipe.tokenizer
    tokenizer.add_tokens(["<dog>", "<dog>_1", "<dog>_2"])
    axis = TextAxis(tiny.pipe, tiny.model)
    scene = foveate.Scene("a <dog> or [cat]{b}", phrases=["<dog>"])
    assert axis.tokens(scene.prompt, [(2, 7)], 77) == (2, 3, 4)
    cat = axis.tokens(scene.prompt, scene.phrases["b"], 77)
    assert min(cat) == 7
    assert len(cat) == 3


def test_unknown_model_is_refused():
    with pytest.raises(NotImplementedError, match="text tokens of SomeModel"):
        axis_of("SomeModel", tokenizer=clip_tokenizer())
