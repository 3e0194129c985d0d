"""Foveate Read Maps on doubles of ComfyUI's models: the softmax mass, and the same picture."""

import pytest
import torch

from comfyui_double import SD3, SLOT, Base, Flux, Patcher, UNet, Wan
from foveate.comfyui.maps import PhraseSettings, heat
from foveate.comfyui.patch import find_patch, install
from foveate.comfyui.phrases import find_phrases
from foveate.comfyui.regions import KEY, RegionPrompts
from foveate.comfyui.settings import Settings
from oracles import LargestTensor

FAMILIES = {"flux": Flux, "sd3": SD3, "unet": UNet, "wan": Wan}
each_family = pytest.mark.parametrize("family", FAMILIES)
PLACES = {"red circle": (1, 2), "square": (4,)}
SIGMAS = (1.0, 0.6, 0.2)


def _settings(**options):
    base = {"places": PLACES, "length": 7, "start_percent": 0.0, "end_percent": 1.0}
    return PhraseSettings(**base | options)


def _model(family):
    return Patcher(Base(FAMILIES[family]()))


def _latent(family, height=12, width=8):
    shape = (1, 4, 3, height, width) if family == "wan" else (1, 4, height, width)
    return torch.randn(shape).double()


def _maps(model, size):
    return find_patch(model).maps.maps(size)


def _oracle(places, seen, grids):
    """An override that notes the mass of the softmax itself; rows of the first half."""

    def override(func, q, k, v, heads, *args, **kwargs):
        split = [x if kwargs.get("skip_reshape") else _split(x, heads) for x in (q, k)]
        qs, ks = (x[: len(x) // 2] for x in split)
        tokens, keys = qs.shape[2], ks.shape[2]
        if (tokens, keys) in grids:
            text, grid = grids[tokens, keys]
            probs = (qs @ ks.mT * qs.shape[-1] ** -0.5).softmax(-1).mean(1)
            mass = [probs[:, text:, places].sum(-1).unflatten(1, grid) for places in places]
            seen.append(torch.stack(mass).flatten(2, -3).mean(2))
        return func(q, k, v, heads, *args, **kwargs)

    return override


def _split(x, heads):
    return x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


# (queries, keys) -> text before the grid, frames x rows x columns
GRIDS = {
    "flux": {(31, 31): (7, (1, 6, 4))},
    "sd3": {(31, 31): (7, (1, 6, 4))},
    "unet": {(96, 14): (0, (1, 12, 8)), (24, 14): (0, (1, 6, 4))},
    "wan": {(72, 14): (0, (3, 6, 4))},
}


@each_family
def test_equals_the_softmax_mass(family):
    """A prompt of 7 tokens that shares its forward with one of 14 is repeated, as ComfyUI does."""
    model, x = _model(family), _latent(family)
    positive = torch.randn(1, 7, 16).double()
    repeat = 1 if family in ("flux", "sd3") else 2
    negative = torch.randn(1, 7 * repeat, 16).double()
    prompts = [([positive.repeat(1, repeat, 1), negative], ["a", "b"], [0, 1])]
    ours, seen = install(model, _settings()), []
    outs = ours.sample(x, None, SIGMAS, prompts)
    places = [[p + 7 * i for p in places for i in range(repeat)] for places in PLACES.values()]
    override = _oracle(places, seen, GRIDS[family])
    recording = Patcher(model.model, options={SLOT: override})
    assert all(map(torch.equal, outs, recording.sample(x, None, SIGMAS, prompts)))
    size = seen[0].shape[-2:]
    seen = [torch.nn.functional.interpolate(m.float(), size, mode="bilinear") for m in seen]
    expected = sum(seen) / len(seen)  # [phrases, 1, h, w]
    for one, wanted in zip(_maps(ours, size).values(), expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-6)
    assert len(seen) == 6


def test_an_operator_is_read_as_it_runs():
    model, x = _model("flux"), _latent("flux", 40, 40)
    rule = Settings(
        mode="local",
        radius=2,
        pool=2,
        start_percent=0.0,
        end_percent=1.0,
        dense_layers="",
        min_tokens=0,
        verbose=False,
    )
    text = torch.randn(1, 7, 16).double()
    plain, local = install(model, _settings()), install(install(model, _settings()), rule)
    plain.sample(x, text)
    local.sample(x, text)
    one, two = (_maps(each, (20, 20))["square"] for each in (plain, local))
    assert two.mean() > 3 * one.mean()  # fewer keys share the softmax with the prompt


def test_steps_outside_are_not_read():
    model, x = _model("flux"), _latent("flux")
    text = torch.randn(1, 7, 16).double()
    ours = install(model, _settings(start_percent=0.3, end_percent=0.6))
    ours.sample(x, text, SIGMAS)
    assert find_patch(ours).maps.store.steps == [1 / 3]
    assert "1 steps read" in find_patch(ours).report()


def test_other_prompts_are_named():
    model, x = _model("flux"), _latent("flux")
    ours = install(model, _settings(length=9))
    ours.sample(x, torch.randn(1, 7, 16).double())
    with pytest.raises(ValueError, match="the text has 9 tokens, but the forward's prompt 7"):
        _maps(ours, (6, 4))
    with pytest.raises(ValueError, match="nothing was sampled"):
        _maps(install(model, _settings()), (6, 4))


def test_regions_are_another_prompt():
    model, x = _model("wan"), _latent("wan")
    ours = install(model, _settings(length=9))
    prompts = RegionPrompts((7, 6), (torch.eye(4),))
    ours.sample(x, torch.randn(1, 13, 16).double(), **{KEY: prompts})
    with pytest.raises(ValueError, match="9 tokens, but the forward's prompt 13"):
        _maps(ours, (6, 4))


def test_memory_is_linear():
    model, x = _model("unet"), torch.randn(1, 4, 64, 64)
    model.model.diffusion_model.weight = model.model.diffusion_model.weight.float()
    ours = install(model, _settings())
    with LargestTensor() as largest:
        ours.sample(x, torch.randn(1, 7, 16))
    assert largest.elements <= 4096 * 16 * 4


def test_two_readers_are_refused():
    with pytest.raises(ValueError, match="already has a Foveate Read Maps node"):
        install(install(_model("flux"), _settings()), _settings())


def test_heat_is_brightest_at_the_largest_value():
    maps = [torch.tensor([[[0.0, 0.1], [0.2, 0.4]]]), torch.tensor([[[0.5, 0.0], [0.0, 0.0]]])]
    pictures, masks = heat(torch.full((3, 2, 2, 3), 0.5), maps)
    assert pictures.shape == (6, 2, 2, 3)
    assert masks.shape == (6, 2, 2)
    torch.testing.assert_close(masks[0], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))
    brightness = pictures[:3].sum(-1)
    assert (brightness.flatten(1).argmax(1) == 3).all()
    assert (brightness[0].flatten().diff() > 0).all()
    assert ((pictures >= 0) & (pictures <= 1)).all()


def test_pictures_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="3 pictures, but maps of 2"):
        heat(torch.zeros(3, 2, 2, 3), [torch.ones(2, 2, 2)])


WORDS = ["a", "red", "circle", "left", "of", "blue", "square", "on", "teal"]


def _clip(*names, chunk=6, ends=True):
    """Tokenizers whose tokens are numbers of words, in chunks with a start and an end."""

    def tokenize(text, return_word_ids=False):
        assert return_word_ids
        words = [(WORDS.index(word), 1.0, i + 1) for i, word in enumerate(text.split())]
        out = {}
        for number, name in enumerate(names):
            size = chunk + number
            parts = [words[i : i + size] for i in range(0, max(1, len(words)), size)]
            parts = [part + [(99, 1.0, 0)] * (size - len(part)) for part in parts]
            out[name] = [[(98, 1.0, 0), *part, (99, 1.0, 0)] for part in parts]
        return out

    return tokenize


TEXT = "a red circle left of a blue square on a teal"


@pytest.mark.parametrize(
    ("names", "places", "length"),
    [
        (("l",), {"red circle": (2, 3), "square": (10,), "a": (1, 6, 12)}, 16),
        (("l", "g"), {"red circle": (2, 3), "square": (10,), "a": (1, 6, 12)}, 16),
        (("l", "t5xxl"), {"red circle": (2, 3), "square": (10,), "a": (1, 6, 12)}, 18),
        (
            ("l", "g", "t5xxl"),
            {"red circle": (2, 3, 18, 19), "square": (10, 24), "a": (1, 6, 12, 17, 22, 28)},
            36,
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_phrases_are_found(names, places, length):
    found, total = find_phrases(_clip(*names), TEXT, list(places))
    assert (found, total) == (places, length)


def test_phrases_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="does not have 'blue circle', written so"):
        find_phrases(_clip("l"), TEXT, ["red circle", "blue circle"])


def test_text_encoders_that_are_not_known_are_named():
    with pytest.raises(ValueError, match="text encoders qwen25_7b: where"):
        find_phrases(_clip("qwen25_7b"), TEXT, ["square"])
