"""Models that mask padded text (PixArt with T5): phrases are found, padding stays hidden."""

import pytest
import torch

import foveate
from foveate.kernels.coverage import coverage
from modulation_oracle import Watched
from oracles import FLOAT32
from tiny_pipelines import Tiny

BOXES = {"red cat": (0, 0, 0.5, 1), "big dog": (0.5, 0, 1, 0.5)}
SCENE = foveate.Scene("  Red cat by big dog", regions=BOXES)


@pytest.fixture(scope="module")
def pixart():
    return Tiny("pixart_t5")


def places(tiny):
    """Positions of each phrase in the pieces; the mark of a space is a piece of its own."""
    pieces = tiny.pipe.tokenizer.tokenize(SCENE.prompt.strip().lower())
    text = "".join(piece.replace("\u2581", " ") for piece in pieces)
    assert text == " red cat by big dog"
    assert len(text) == len(pieces)
    return {"red cat": list(range(8)), "big dog": list(range(11, 19))}


def padding(tiny, prompt):
    """[T], True at padding."""
    with torch.no_grad():
        mask = tiny.pipe.encode_prompt(prompt, False, max_sequence_length=24)[1][0]
    assert 0 < mask.sum() < 24
    return ~mask.bool()


def edited(seen, row, bias):
    """softmax of the row's logits with a bias [N, T], on its values; and the weights."""
    q, k = seen.q(row), seen.project("to_k", seen.text[row])
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)
    return weights @ seen.project("to_v", seen.text[row]), weights


def test_regions_and_maps_of_padded_text(pixart):
    attn = pixart.model.transformer_blocks[1].attn2
    reader = foveate.SpanMaps(SCENE).where(layers="transformer_blocks.1.attn2")
    mods = [foveate.RegionBind(SCENE, alone=0), reader]
    with Watched(attn) as seen, foveate.modulate(pixart.pipe, mods) as run:
        pixart(prompt=SCENE.prompt, steps=1)
        maps = run.span_maps()
    bias = torch.zeros(24, 24, dtype=torch.float64)  # 4 x 6 pixels, 24 tokens
    bias[:, padding(pixart, SCENE.prompt)] = -torch.inf
    for name, tokens in places(pixart).items():
        outside = coverage(BOXES[name], 4, 6).flatten() <= 0.5
        for token in tokens:
            bias[outside, token] = -torch.inf
    want, weights = edited(seen, 1, bias)
    torch.testing.assert_close(seen.out[1].double(), want, **FLOAT32)
    for name, tokens in places(pixart).items():
        mass = weights[..., tokens].sum(-1).mean(0).view(4, 6)
        torch.testing.assert_close(maps[name][0].double(), mass, **FLOAT32)
    # the other half saw its own padding
    bias = torch.zeros(24, 24, dtype=torch.float64)
    bias[:, padding(pixart, "")] = -torch.inf
    torch.testing.assert_close(seen.out[0].double(), edited(seen, 0, bias)[0], **FLOAT32)


def test_rows_of_different_padding_in_one_edit(pixart):
    attn = pixart.model.transformer_blocks[0].attn2
    both = foveate.Emphasize(SCENE, {"red cat": 5.0}).where(branch="both")
    with Watched(attn) as seen, foveate.modulate(pixart.pipe, [both]) as run:
        pixart(prompt=SCENE.prompt, negative_prompt="a dog", steps=1)
    for row, prompt in enumerate(("a dog", SCENE.prompt)):
        bias = torch.zeros(24, 24, dtype=torch.float64)
        bias[:, places(pixart)["red cat"]] = torch.tensor(5.0, dtype=torch.float64).log()
        bias[:, padding(pixart, prompt)] = -torch.inf
        torch.testing.assert_close(seen.out[row].double(), edited(seen, row, bias)[0], **FLOAT32)
    assert "further head dimensions" in str(run.explain())


def test_a_caption_filter_that_rewrites_the_prompt_is_refused(pixart, monkeypatch):
    def rewrite(self, text, clean_caption=False):
        texts = [text] if isinstance(text, str) else text
        words = [one.lower().strip() for one in texts]
        return [one.replace("by", "beside") if clean_caption else one for one in words]

    monkeypatch.setattr(type(pixart.pipe), "_text_preprocessing", rewrite)
    with foveate.modulate(pixart.pipe, [foveate.RegionBind(SCENE)]):
        pixart(prompt=SCENE.prompt, steps=1)
        with pytest.raises(ValueError, match="clean_caption makes 'red cat beside big dog'"):
            pixart(prompt=SCENE.prompt, steps=1, clean_caption=True)
