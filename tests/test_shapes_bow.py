"""`shapes-sd-bow`: its text encoder is a bag of words, and all else is stock or `shapes-sd`'s."""

import pytest
import torch

from foveate.pipelines.shapes import load
from foveate.pipelines.shapes.training import export as exporting
from foveate.pipelines.shapes.training.bow import TRAINED, bag_of_words
from foveate.pipelines.shapes.training.tokenizers import TEXT_LENGTH, token_ids

CAPTION = "a red circle and a blue square on a teal background"
SWAPPED = "a blue circle and a red square on a teal background"


@pytest.fixture(scope="module")
def base():
    return load.load_shapes("sd")


@pytest.fixture(scope="module")
def bow():
    return load.load_shapes("sd-bow")


@torch.no_grad()
def states(encoder, ids):
    return encoder(ids).last_hidden_state


def permuted_error(pipe):
    """How far the states of permuted tokens are from the permuted states."""
    ids = token_ids(pipe.tokenizer, [CAPTION])
    order = torch.randperm(TEXT_LENGTH, generator=torch.Generator().manual_seed(5))
    found = states(pipe.text_encoder, ids[:, order])
    return (found - states(pipe.text_encoder, ids)[:, order]).abs().max()


def test_permuted_words_give_permuted_states(bow, base):
    assert permuted_error(bow) == 0
    assert permuted_error(base) > 0.1


def test_a_word_has_one_state_in_every_prompt(bow):
    ids = token_ids(bow.tokenizer, [CAPTION, SWAPPED])
    one, two = states(bow.text_encoder, ids)
    red, blue = (bow.tokenizer(word).input_ids[1] for word in ("red", "blue"))
    assert torch.equal(one[ids[0] == red], two[ids[1] == red])
    assert not torch.equal(one[ids[0] == red], one[ids[0] == blue])


def test_exchanged_colours_are_the_same_picture(bow, base):
    def difference(pipe):
        pictures = [
            pipe(
                prompt,
                num_inference_steps=3,
                generator=torch.Generator().manual_seed(2),
                output_type="latent",
            ).images
            for prompt in (CAPTION, SWAPPED)
        ]
        return (pictures[0] - pictures[1]).abs().max()

    assert difference(bow) < 1e-3
    assert difference(base) > 0.1


def test_only_the_transformer_blocks_are_its_own(bow, base):
    shared = base.unet.state_dict()
    for name, tensor in bow.unet.state_dict().items():
        assert torch.equal(tensor, shared[name]) == (TRAINED not in name), name
    for one, two in zip(bow.vae.parameters(), base.vae.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_embeddings_start_at_the_mean_states_of_the_words(base):
    bag = bag_of_words(base.text_encoder, base.tokenizer, seed=0).eval()
    ids = token_ids(base.tokenizer, [CAPTION])
    contextual, alone = states(base.text_encoder, ids), states(bag, ids)
    distance = torch.cdist(contextual[0], alone[0])
    own = [
        (ids[0] == base.tokenizer(word).input_ids[1]).nonzero()[0, 0] for word in ("blue", "square")
    ]
    for row in own:
        others = (ids[0] != ids[0, row]).nonzero()[:, 0]
        assert distance[row, row] < distance[row, others].min()


def test_an_exported_model_loads_as_it_was(bow, tmp_path, monkeypatch):
    bow.save_pretrained(tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    own = tmp_path / "weights"
    monkeypatch.setattr(exporting, "weights_folder", lambda name: own)
    monkeypatch.setattr(exporting, "LOGS", tmp_path)
    exporting.export("sd-bow", tmp_path / "run")
    assert not (own / "unet").exists()
    again = load.on_base(load.load_shapes("sd"), own, torch.float32)
    for part in ("unet", "text_encoder"):
        found = getattr(again, part).state_dict()
        for name, tensor in getattr(bow, part).state_dict().items():
            assert torch.equal(found[name], tensor), name
