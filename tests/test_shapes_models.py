"""The embedded models: stock pipelines that load offline and draw what they are asked for."""

import json

import diffusers
import numpy as np
import pytest
import torch

from foveate.pipelines.shapes import load_shapes
from foveate.pipelines.shapes.load import MODELS, weights_folder
from foveate.pipelines.shapes.quality import draw, score_all
from foveate.pipelines.shapes.training.data import held_out_asks

CLASSES = {
    "sd": diffusers.StableDiffusionPipeline,
    "sd-bow": diffusers.StableDiffusionPipeline,
    "flux": diffusers.FluxPipeline,
}
NAMES = [name for name in MODELS if weights_folder(name).exists()]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return request.param, load_shapes(request.param)


def test_is_the_stock_pipeline_class(model):
    name, pipe = model
    assert type(pipe) is CLASSES[name]
    denoiser = pipe.transformer if name == "flux" else pipe.unet
    assert denoiser.dtype == torch.float32


def test_default_size_is_the_base_size(model):
    name, pipe = model
    picture = pipe("a red circle on a teal background", num_inference_steps=1).images[0]
    assert picture.size == (MODELS[name].base_size,) * 2


def test_draws_as_well_as_its_card_says(model):
    name, pipe = model
    asks = held_out_asks(16, 1, seed=11)
    drawn = draw(pipe, asks, size=(64, 64), steps=15, call=MODELS[name].call)
    card = json.loads((weights_folder(name) / "card.json").read_text())
    measured = np.mean([one.bind for one in score_all(drawn, asks)])
    assert abs(measured - card["figures"]["BIND 1"]["mean"]) < 0.35  # 3 deviations of 16 draws


def test_a_picture_depends_on_its_own_seed_alone(model):
    name, pipe = model
    asks = held_out_asks(3, 1, seed=12)
    options = {"size": (64, 64), "steps": 3, "call": MODELS[name].call, "seed": 4}
    together = draw(pipe, asks, batch=3, **options)
    alone = draw(pipe, asks, batch=1, **options)
    np.testing.assert_allclose(together, alone, atol=2e-3)


def test_all_weights_stay_under_40_mb():
    folders = [weights_folder(name) for name in NAMES]
    assert folders
    total = sum(file.stat().st_size for folder in folders for file in folder.rglob("*"))
    assert total < 40e6


@pytest.mark.parametrize("name", NAMES)
def test_the_card_states_measured_figures(name):
    card = json.loads((weights_folder(name) / "card.json").read_text())
    assert card["prompts"] >= 200
    for key in ("BIND 1", "BIND 2", "REL 2"):
        assert card["figures"][key]["num"] >= 200


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match=r"'sd', 'sd-bow', 'flux', 'motion'"):
        load_shapes("sdxl")
