"""The scripts behind the embedded models: exact resume, one-token words, unseen captions."""

import json

import numpy as np
import pytest
import torch

from foveate.pipelines.shapes.scene import RELATIONS, parse_caption, relation_holds, sample_scene
from foveate.pipelines.shapes.training.autoencoder import build_autoencoder
from foveate.pipelines.shapes.training.data import held_out_asks, is_held_out, latent_set, place
from foveate.pipelines.shapes.training.loop import TrainingConfig, train
from foveate.pipelines.shapes.training.schedule import Curriculum
from foveate.pipelines.shapes.training.text import Probed, build_clip, build_t5, loss_of, targets
from foveate.pipelines.shapes.training.tokenizers import (
    TEXT_LENGTH,
    WORDS,
    clip_tokenizer,
    t5_tokenizer,
)


def noisy_regression(model, step, generator):
    x = torch.randn(8, 3, generator=generator)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def small_model():
    torch.manual_seed(3)
    return torch.nn.Linear(3, 1)


def test_a_resumed_training_equals_an_unbroken_one(tmp_path):
    config = TrainingConfig(steps=20, warmup=4, log_every=5, save_every=10)
    whole = train(small_model(), noisy_regression, tmp_path / "whole", config)

    class Stop(Exception):
        pass

    def stop(model, step):
        raise Stop

    with pytest.raises(Stop):
        train(small_model(), noisy_regression, tmp_path / "broken", config, stop)
    resumed = train(small_model(), noisy_regression, tmp_path / "broken", config)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    config = TrainingConfig(steps=200, learning_rate=0.05, warmup=4, log_every=20)
    train(small_model(), noisy_regression, tmp_path, config)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(20, 201, 20))
    assert rows[-1]["loss"] < 0.05 * rows[0]["loss"]
    assert rows[-1]["rate"] < 0.05 * config.learning_rate


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_one_token(word):
    assert len(clip_tokenizer()(word).input_ids) == 3  # with start and end
    assert len(t5_tokenizer()(word).input_ids) == 2  # with end


def test_the_longest_caption_fits():
    caption = "a red circle left of a blue square and a green star on a teal background"
    parse_caption(caption)
    assert len(clip_tokenizer()(caption).input_ids) <= TEXT_LENGTH


@pytest.mark.parametrize(
    ("tokenizer", "build"),
    [(clip_tokenizer, build_clip), (t5_tokenizer, build_t5)],
    ids=["clip", "t5"],
)
def test_text_probes_reach_the_encoder(tokenizer, build):
    words = tokenizer()
    model = Probed(build(len(words)))
    loss_of(words, model, torch.Generator().manual_seed(0)).backward()
    assert all(p.grad is not None for p in model.encoder.encoder.parameters())


def test_the_probes_ask_for_both_sides_of_a_relation():
    ask = parse_caption("a red circle above a blue star and a green square on a pink background")
    wanted = targets(ask)
    red, green, blue = 0, 1, 2
    circle, square, star = 0, 1, 3
    above, below, nowhere = 2, 3, 4
    assert wanted.at_shape == [[red, circle, above], [blue, star, below], [green, square, nowhere]]
    nothing = [8, 4]
    assert wanted.at_padding == [nothing, nothing, [red, circle], [blue, star]]
    assert wanted.at_end == [above, 2, red, circle, blue, star, green, square]


def test_held_out_captions_are_never_trained_on(tmp_path):
    asks = held_out_asks(20, 2, seed=1)
    assert all(is_held_out(ask) and ask.relation is not None for ask in asks)
    vae = build_autoencoder()
    made = latent_set(vae, 16, 100, 7, tmp_path)
    assert made.latents.shape == (100, 4, 4, 4)
    assert not any(is_held_out(parse_caption(caption)) for caption in made.captions)
    again = latent_set(vae, 16, 100, 7, tmp_path)  # from the file
    assert again.captions == made.captions
    assert torch.equal(again.latents, made.latents)


@pytest.mark.parametrize("relation", RELATIONS)
def test_placed_scenes_keep_their_relation_and_stay_inside(relation):
    rng = np.random.default_rng(2)
    scene = next(s for s in iter(lambda: sample_scene(rng, 3), None) if s.relation == relation)
    placed = place(scene)
    first, second = placed.objects
    assert placed.relation == relation
    assert relation_holds(relation, (first.x, first.y), (second.x, second.y))
    assert [(o.colour, o.shape) for o in placed.objects] == list(scene.ask.objects[:2])
    for thing in placed.objects:
        assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
    gap = np.hypot(first.x - second.x, first.y - second.y) - first.radius - second.radius
    assert gap > 0


def test_curriculum_goes_from_stage_to_stage_and_mixes():
    late = {64: (4, 0.8), 96: (2, 0.2)}
    curriculum = Curriculum(stages=((0.5, {32: (8, 1.0)}), (1.0, late)))
    generator = torch.Generator().manual_seed(0)
    assert {curriculum.at(0.2, generator) for _ in range(50)} == {(32, 8)}
    drawn = [curriculum.at(progress, generator) for progress in (0.5, 1.0) for _ in range(300)]
    assert set(drawn) == {(64, 4), (96, 2)}
    assert 0.1 < drawn.count((96, 2)) / len(drawn) < 0.3
    assert set(curriculum.set_sizes()) == {32, 64, 96}


def test_a_mix_that_does_not_sum_to_one_is_refused():
    with pytest.raises(ValueError, match="must sum to 1, got 0.5"):
        Curriculum(stages=((1.0, {32: (8, 0.5)}),))
