"""The video model: shapes-sd with motion modules, a text encoder and cross-attention of its own."""

import json

import diffusers
import pytest
import torch
import torch.nn.functional as F

from foveate.pipelines.shapes import load_shapes
from foveate.pipelines.shapes.load import VIDEO_MODELS, load_motion, weights_folder
from foveate.pipelines.shapes.quality import draw
from foveate.pipelines.shapes.scene import MOTIONS, parse_caption
from foveate.pipelines.shapes.tracks import read_clip
from foveate.pipelines.shapes.training.data import (
    LatentSet,
    clip_set,
    held_out_clip_asks,
    is_held_out,
)
from foveate.pipelines.shapes.training.motion import (
    CLIPS,
    FRESH,
    ClipLoss,
    frames_at,
    fresh_model,
    motion_loss,
)

CAPTION = "a red circle moving right on a teal background"
WAYS = ("left", "right")
SHIPPED = weights_folder("motion")


@pytest.fixture(scope="module")
def base():
    return load_shapes("sd")


@pytest.fixture(scope="module")
def untrained(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion")
    torch.manual_seed(0)
    fresh_model(base).save(folder)
    return load_motion(folder)


def test_without_training_every_frame_is_a_picture_of_shapes_sd(base, untrained):
    assert type(untrained) is diffusers.AnimateDiffPipeline
    base.set_progress_bar_config(disable=True)
    untrained.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 3, 12, 16)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 48, "width": 64}
    clip = untrained(CAPTION, num_frames=3, latents=noise, output_type="pt", **call).frames[0]
    for i, frame in enumerate(clip):
        picture = base(CAPTION, latents=noise[:, :, i], output_type="pt", **call).images[0]
        torch.testing.assert_close(frame, picture, rtol=0, atol=1e-4)


def test_a_clip_has_sixteen_frames_of_the_base_size(untrained):
    asks = [parse_caption(CAPTION)]
    clips = draw(untrained, asks, size=(64, 64), steps=1, call={"guidance_scale": 1.0})
    assert clips.shape == (1, 16, 64, 64, 3)


@pytest.fixture
def clips():
    torch.manual_seed(0)
    return LatentSet(torch.randn(3, 4, 16, 8, 8).half(), [CAPTION] * 3)


def test_motion_modules_text_and_cross_attention_learn_and_nothing_else(base, clips):
    torch.manual_seed(0)
    model = fresh_model(base)
    loss_of = ClipLoss(base.tokenizer, dict.fromkeys(CLIPS, clips), FRESH, 4)
    loss_of(model, 0, torch.Generator().manual_seed(0)).backward()
    learns = {name for name, weight in model.named_parameters() if weight.grad is not None}
    parts = ("motion_modules.", ".attn2.", "text_encoder.", "at_end.")
    assert all(any(part in name for name in learns) for part in parts)
    assert all(any(part in name for part in parts) for name in learns)


def test_a_few_frames_keep_their_numbers(base):
    """Motion modules that see frames 1, 5, 9 and 13 alone: as if the others were not there."""
    torch.manual_seed(0)
    unet = fresh_model(base).unet
    frames = torch.tensor([1, 5, 9, 13])
    places = [m for m in unet.modules() if hasattr(m, "pe")]
    before = [place.pe for place in places]
    with frames_at(unet, frames):
        for place, pe in zip(places, before, strict=True):
            x = torch.randn(2, 4, pe.shape[-1])
            assert torch.equal(place(x), x + pe[:, frames])
    assert places
    assert all(place.pe is pe for place, pe in zip(places, before, strict=True))


def test_the_lesson_of_the_word_sees_few_frames(base, clips):
    loss_of = ClipLoss(base.tokenizer, dict.fromkeys(CLIPS, clips), FRESH, 100)
    generator = torch.Generator().manual_seed(0)
    few = [loss_of.frames(16, 40, generator).tolist() for _ in range(20)]
    assert all(frames == list(range(frames[0], 16, 4)) for frames in few)
    assert {frames[0] for frames in few} == {0, 1, 2, 3}
    for step in (0, 29, 75, 99):
        assert loss_of.frames(16, step, generator).tolist() == list(range(16))


def test_the_probe_asks_every_token_from_the_end_on():
    captions = [CAPTION, "", "a red circle on a teal background"]
    is_end = torch.tensor([[False, True, True], [True, True, True], [False, False, True]])
    wanted = torch.tensor([list(MOTIONS).index("right"), 4, 4])
    logits = torch.full((3, 3, 5), -20.0)
    logits[is_end] = 20.0 * F.one_hot(wanted, 5).float()[:, None].expand(3, 3, 5)[is_end]
    assert motion_loss(logits, is_end, captions) < 1e-6
    assert motion_loss(logits.roll(1, -1), is_end, captions) > 10


def test_clip_latents_are_those_of_the_frames_and_made_once(base, tmp_path):
    first = clip_set(base.vae, 32, 3, 7, tmp_path)
    assert first.latents.shape == (3, 4, 16, 8, 8)
    assert not any(is_held_out(parse_caption(caption)) for caption in first.captions)
    again = clip_set(None, 32, 3, 7, tmp_path)
    assert torch.equal(first.latents, again.latents)
    assert first.captions == again.captions


def test_held_out_clips_move():
    asks = held_out_clip_asks(20, seed=3)
    assert all(is_held_out(ask) and ask.motions[0] for ask in asks)
    assert asks == held_out_clip_asks(20, seed=3)


def test_a_model_that_is_not_shipped_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("foveate.pipelines.shapes.load._WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="weights of shapes-motion are not in this package"):
        load_shapes("motion")


def test_the_shipped_model_loads_and_is_small():
    pipe = load_shapes("motion")
    assert type(pipe) is diffusers.AnimateDiffPipeline
    assert {part.name for part in SHIPPED.iterdir() if part.is_dir()} == {
        "motion_adapter",
        "text_encoder",
    }
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 8e6
    moved = [weight for name, weight in pipe.unet.named_parameters() if "proj_out.w" in name]
    assert all(weight.abs().max() > 0 for weight in moved)


def test_the_card_states_measured_figures():
    card = json.loads((SHIPPED / "card.json").read_text())
    assert card["prompts"] >= 100
    assert card["figures"]["DIRECTION"]["num"] >= 100
    assert card["figures"]["DIRECTION"]["mean"] >= 0.8


def test_the_word_turns_the_way():
    """The same noise, opposite words: the circle goes opposite ways."""
    pipe = load_shapes("motion")
    asks = [parse_caption(f"a red circle moving {way} on a teal background") for way in WAYS]
    noise = torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    call = {**VIDEO_MODELS["motion"].call, "latents": noise}
    clips = [draw(pipe, [ask], size=(64, 64), steps=8, call=call)[0] for ask in asks]
    travels = [read_clip(clip).tracks[0].travel[0] for clip in clips]
    assert travels[0] < -0.15
    assert travels[1] > 0.15
