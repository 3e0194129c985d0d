"""The layout table: which grid, text and kinds the arguments of forward tell."""

import pytest
import torch
from torch import nn

from foveate.attn_processors.layouts import FAMILIES, attention_layers, family_of, halved_grids
from foveate.attn_processors.rotary import RotaryReader
from foveate.attn_processors.tracker import Tracker
from foveate.kernels.layout import Segment, TokenLayout
from tiny_pipelines import Tiny


def flux_ids(height, width, image=0):
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = image
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)
    return ids.reshape(-1, 3)


def flux_layouts(ids, text=7):
    arguments = {"img_ids": ids, "encoder_hidden_states": torch.zeros(1, text, 4)}
    return FAMILIES["FluxTransformer2DModel"].layouts(nn.Module(), arguments)


@pytest.mark.parametrize(
    ("grid", "levels"),
    [
        ((12, 16), [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]),
        ((45, 7), [(45, 7), (23, 4), (12, 2), (6, 1), (3, 1), (2, 1), (1, 1)]),
        ((1, 1), [(1, 1)]),
    ],
)
def test_halved_grids(grid, levels):
    assert list(halved_grids(*grid)) == levels


def test_halved_grids_are_those_of_stride_two_convolutions():
    conv = nn.Conv2d(1, 1, 3, stride=2, padding=1)
    x = torch.randn(1, 1, 37, 10)
    for grid in halved_grids(37, 10):
        assert x.shape[-2:] == grid
        x = conv(x)


@pytest.mark.parametrize("grid", [(8, 12), (13, 7), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux_grid(grid, dtype):
    ids = flux_ids(*grid).to(dtype)
    assert flux_layouts(ids) == (TokenLayout(text=7, grid=(1, *grid)),)
    assert flux_layouts(ids[None].expand(2, -1, -1)) == (TokenLayout(text=7, grid=(1, *grid)),)


def test_flux_grid_past_256_rows_in_bfloat16():
    ids = flux_ids(300, 3).bfloat16()
    assert int(ids[:, 1].max()) + 1 != 300
    assert flux_layouts(ids) == (TokenLayout(text=7, grid=(1, 300, 3)),)


def test_flux_reference_image_is_an_extra_segment():
    ids = torch.cat((flux_ids(4, 6), flux_ids(3, 6, image=1)))
    assert flux_layouts(ids) == (
        TokenLayout(text=7, grid=(1, 4, 6), extra=(Segment(18, "reference"),)),
    )


def test_flux_ids_out_of_raster_order_have_no_layout():
    ids = flux_ids(4, 6)
    assert flux_layouts(ids[torch.randperm(24)]) == ()
    assert flux_layouts(flux_ids(4, 6).flip(0)[:-1]) == ()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("sd", {"attn1": "self", "attn2": "cross"}),
        ("flux", {"attn": "joint"}),
        ("sd3", {"attn": "joint", "attn2": "self"}),
    ],
)
def test_kinds(name, kinds):
    model = Tiny(name).model
    family, layers = family_of(model), attention_layers(model)
    found = {layer.rsplit(".", 1)[1]: family.kind(layer, m) for layer, m in layers.items()}
    assert found == kinds
    assert len(layers) == len(model.attn_processors)


def test_unknown_model_says_what_to_add():
    with pytest.raises(
        NotImplementedError, match="layout of Linear.*FluxTransformer2DModel.*one row"
    ):
        family_of(nn.Linear(2, 2))


def test_subclass_of_a_known_model():
    model = Tiny("flux").model
    model.__class__ = type("MyFlux", (type(model),), {})
    assert family_of(model) is FAMILIES["FluxTransformer2DModel"]


@pytest.mark.parametrize("grid", [(8, 12), (13, 7), (1, 5), (2, 1), (1, 1)])
@pytest.mark.parametrize("text", [0, 7])
def test_rotary_reader(grid, text):
    embed = Tiny("flux").model.pos_embed
    rotary = embed(torch.cat((torch.zeros(text, 3), flux_ids(*grid))))
    # a column of tokens and a row of them have the same distances
    grid = (1, 2) if grid == (2, 1) else grid
    layout = TokenLayout(text=text, grid=(1, *grid))
    assert RotaryReader().read(rotary, None) == layout
    assert RotaryReader().read(rotary, text) == layout


def test_rotary_reader_refuses_reference_images():
    embed = Tiny("flux").model.pos_embed
    rotary = embed(torch.cat((torch.zeros(7, 3), flux_ids(4, 6), flux_ids(3, 6, image=1))))
    with pytest.raises(ValueError, match="not that of text and one image"):
        RotaryReader().read(rotary, 7)


def test_rotary_reader_refuses_a_wrong_text_length():
    rotary = Tiny("flux").model.pos_embed(torch.cat((torch.zeros(7, 3), flux_ids(4, 6))))
    with pytest.raises(ValueError, match="not that of text and one image"):
        RotaryReader().read(rotary, 5)


class Schedule:
    """What a tracker needs of a pipeline."""

    def __init__(self, timesteps):
        self.scheduler = self
        self.timesteps = torch.tensor(timesteps)


def unet_forward(tracker, model, timestep, size=(12, 16)):
    tracker(model, (torch.zeros(2, 4, *size), timestep), {"encoder_hidden_states": None})


@pytest.mark.parametrize(
    ("steps", "inside"),
    [
        ((0, 1), [True, True, True, True]),
        ((0.25, 1), [False, True, True, True]),
        ((0, 0.5), [True, True, False, False]),
        ((0.5, 0.75), [False, False, True, False]),
    ],
)
def test_step_window_by_schedule(steps, inside):
    model = Tiny("sd").model
    schedule = Schedule([900, 600, 300, 0])
    tracker = Tracker(model, family_of(model), schedule, steps)
    for timestep, expected in zip(schedule.timesteps, inside, strict=True):
        for form in (timestep, timestep.expand(2), int(timestep), float(timestep)):
            unet_forward(tracker, model, form)
            assert tracker.active == expected


def test_step_window_by_timestep_alone():
    model = Tiny("sd").model
    tracker = Tracker(model, family_of(model), None, (0.5, 1))
    found = []
    for timestep in (999, 501, 499, 0):
        unet_forward(tracker, model, timestep)
        found.append(tracker.active)
    assert found == [False, False, True, True]


def test_step_in_half_precision_takes_the_nearest():
    model = Tiny("flux").model
    schedule = Schedule([1000.0, 957.3, 903.1, 830.9])
    tracker = Tracker(model, family_of(model), schedule, (0.5, 0.75))
    found = []
    for timestep in schedule.timesteps:
        arguments = {
            "encoder_hidden_states": torch.zeros(1, 7, 4),
            "img_ids": flux_ids(2, 3),
            "timestep": (timestep / 1000).bfloat16()[None],
        }
        tracker(model, (), arguments)
        found.append(tracker.active)
    assert found == [False, False, True, False]


def test_tracker_reads_ids_once_per_object_and_shape():
    model = Tiny("flux").model
    tracker = Tracker(model, family_of(model), None, None)
    ids = flux_ids(2, 3)
    arguments = {"encoder_hidden_states": torch.zeros(1, 7, 4), "img_ids": ids, "timestep": 1.0}
    tracker(model, (), arguments)
    first = tracker.layouts
    tracker(model, (), {**arguments, "timestep": 0.5})
    assert tracker.layouts is first
    tracker(model, (), {**arguments, "encoder_hidden_states": torch.zeros(1, 9, 4)})
    assert tracker.layouts == {15: TokenLayout(text=9, grid=(1, 2, 3))}
    tracker(model, (), {**arguments, "img_ids": flux_ids(3, 2)})
    assert tracker.layouts == {13: TokenLayout(text=7, grid=(1, 3, 2))}
