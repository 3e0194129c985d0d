"""AttentionMasks equals its formula with every matrix written out."""

import pytest
import torch
import torch.nn.functional as F

import foveate
from foveate.attn_processors.modulation import Reader
from oracles import FLOAT64, LargestTensor
from tiny_pipelines import Tiny

SCENE = foveate.Scene("red cat by big dog", phrases=["red cat", "big dog"])
PLACES = {"red cat": slice(1, 7), "big dog": slice(9, 15)}


class Everything(Reader):
    """Whole maps: mean over heads, by kind and grid, of the last step."""

    kinds = frozenset({"self", "cross", "joint"})

    def new_store(self):
        return {}

    def read(self, site, mass, store):
        whole = mass(torch.eye(site.num_keys, dtype=site.dtype))[:, :, site.layout.grid_slice]
        store.setdefault((site.progress, site.kind, site.grid), []).append(whole)


def scaled(planes):
    low, high = planes.amin((2, 3), keepdim=True), planes.amax((2, 3), keepdim=True)
    return (planes - low) / (high - low)


def expected(cross, affinity, grid, places, power, cross_power=2):
    """M [b, phrases, h, w] of maps [b, h, w, tokens] and a self-attention matrix [b, N, N]."""
    maps = torch.stack([cross[..., place].amax(-1) for place in places.values()], 1)
    if maps.shape[2:] != grid:
        maps = F.interpolate(maps, size=grid, mode="bicubic")
    columns = scaled(maps**cross_power).flatten(2).mT
    return scaled((torch.matrix_power(affinity, power) @ columns).mT.unflatten(2, grid))


def sharp(name):
    """A pipeline in float64 whose pixels tell others apart, as with trained weights."""
    tiny = Tiny(name)
    tiny.pipe.to(torch.float64)
    for layer, module in tiny.model.named_modules():
        if layer.endswith(("attn1.to_q", "attn.to_q")):
            module.weight.data *= 20
    return tiny


@pytest.mark.parametrize("power", [0, 4])
@pytest.mark.parametrize(("cross_tokens", "cross_grid"), [(256, (12, 16)), (50, (6, 8))])
def test_masks_equal_the_formula(cross_tokens, cross_grid, power):
    tiny = sharp("sd")
    reader = foveate.AttentionMasks(SCENE, cross_tokens=cross_tokens, power=power, margin=0.01)
    everything = Everything(SCENE)
    with foveate.modulate(tiny.pipe, [reader, everything]) as run:
        tiny(prompt=SCENE.prompt, steps=2)
        masks = run.attention_masks()
        scores = run.read_by(reader).scores()
        seen = run.read_by(everything)
    cross = torch.stack([m.mean(1) for m in seen[0.5, "cross", cross_grid]]).mean(0)
    affinity = torch.stack([m.mean(1) for m in seen[0.5, "self", (12, 16)]]).mean(0)
    want = expected(cross.unflatten(1, cross_grid), affinity, (12, 16), PLACES, power)
    torch.testing.assert_close(scores, want, **FLOAT64)
    one, two = want[:, 0], want[:, 1]
    assert torch.equal(masks["red cat"], one - two > 0.01)
    assert torch.equal(masks["big dog"], two - one > 0.01)
    assert (masks["red cat"] | masks["big dog"]).any()


def tokens_of(tiny):
    """Positions by the tokenizer's offsets."""
    offsets = tiny.pipe.tokenizer_2(SCENE.prompt, return_offsets_mapping=True)["offset_mapping"]
    return {
        name: [i for i, (s, e) in enumerate(offsets) if s < e and s < high and low < e]
        for name, ((low, high),) in SCENE.phrases.items()
    }


def test_masks_of_a_joint_model():
    tiny = sharp("flux")
    reader, everything = foveate.AttentionMasks(SCENE, power=3), Everything(SCENE)
    with foveate.modulate(tiny.pipe, [reader, everything]) as run:
        tiny(prompt=SCENE.prompt, steps=1, max_sequence_length=24)
        scores = run.read_by(reader).scores()
        (whole,) = run.read_by(everything).values()
    # pixels attend to text as well: their part of the map is made to add up to 1, head by head
    pixels = [m[..., 24:] / m[..., 24:].sum(-1, keepdim=True) for m in whole]
    affinity = torch.stack([m.mean(1) for m in pixels]).mean(0)
    cross = torch.stack([m.mean(1) for m in whole]).mean(0).unflatten(1, (8, 12))
    want = expected(cross, affinity, (8, 12), tokens_of(tiny), power=3)
    torch.testing.assert_close(scores, want, **FLOAT64)


def test_the_picture_is_untouched_and_masks_are_regions():
    tiny = Tiny("sd")
    want = tiny(prompt=SCENE.prompt)
    reader = foveate.AttentionMasks(SCENE, margin=0.0).where(steps=(0, 0.5))
    with foveate.modulate(tiny.pipe, [reader]) as run:
        with pytest.raises(ValueError, match="no layer of at most cross_tokens=256"):
            run.attention_masks()
        assert torch.equal(tiny(prompt=SCENE.prompt), want)
        masks = {name: mask[0] for name, mask in run.attention_masks().items()}
    bound = foveate.Scene(SCENE.prompt, regions=masks)
    with foveate.modulate(tiny.pipe, [foveate.RegionBind(bound)]):
        assert not torch.equal(tiny(prompt=SCENE.prompt), want)


def test_no_map_of_pixels_is_made():
    tiny, size, tokens = Tiny("sd"), (128, 192), 32 * 48
    reader = foveate.AttentionMasks(SCENE, self_tokens=tokens, cross_tokens=400, power=4)
    with LargestTensor() as log, foveate.modulate(tiny.pipe, [reader]) as run:
        tiny(size, prompt=SCENE.prompt, steps=1)
        assert run.attention_masks()["red cat"].shape == (1, 32, 48)
    assert log.elements < tokens**2 / 4


def test_wrong_options():
    with pytest.raises(ValueError, match="has one; mark more"):
        foveate.AttentionMasks(foveate.Scene("[cat]{a}"))
    with pytest.raises(ValueError, match="power must be"):
        foveate.AttentionMasks(SCENE, power=-1)
    with pytest.raises(ValueError, match="margin must lie"):
        foveate.AttentionMasks(SCENE, margin=1)
    tiny = Tiny("sd")
    with foveate.modulate(tiny.pipe, [foveate.AttentionMasks(SCENE, self_tokens=9)]) as run:
        tiny(prompt=SCENE.prompt, steps=1)
        with pytest.raises(ValueError, match="self_tokens=9 tokens was read"):
            run.attention_masks()
