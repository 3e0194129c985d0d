"""Rows that no tiny pipeline reaches, the generic rule, and how to add a row."""

import logging

import diffusers
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import nn

import foveate
from foveate import Family, LocalAttnProcessor, TokenLayout, apply
from foveate.attn_processors.layouts import FAMILIES, LEFT_ALONE, TARGETS, family_of
from foveate.attn_processors.layouts.kinds import unet_kind
from foveate.attn_processors.tracker import Tracker
from foveate.kernels.layout import Segment
from probes import GainAttnProcessor

PLAIN = nn.Module()


def layouts_of(name, **arguments):
    return FAMILIES[name].layouts(PLAIN, arguments)


def configured(**config):
    """A module with a config, as far as a layout reads it."""
    module = nn.Module()
    module.config = type("Config", (), config)
    return module


def test_every_row_names_a_class_of_diffusers():
    for name in FAMILIES:
        assert issubclass(getattr(diffusers, name), nn.Module)


# rows


def test_qwen_edit_keeps_its_references():
    text = torch.zeros(2, 7, 4)
    shapes = [[(1, 4, 6), (1, 2, 6), (1, 3, 3)]] * 2
    found = layouts_of("QwenImageTransformer2DModel", encoder_hidden_states=text, img_shapes=shapes)
    assert found == (TokenLayout(text=7, grid=(1, 4, 6), extra=(Segment(21),)),)
    # the ControlNet pipelines give one shape a sample, without a list
    shapes = [(1, 4, 6)] * 2
    found = layouts_of("QwenImageTransformer2DModel", encoder_hidden_states=text, img_shapes=shapes)
    assert found == (TokenLayout(text=7, grid=(1, 4, 6)),)


def test_qwen_samples_of_two_sizes_have_no_layout():
    shapes = [[(1, 4, 6)], [(1, 6, 4)]]
    text = torch.zeros(2, 7, 4)
    assert not layouts_of(
        "QwenImageTransformer2DModel", encoder_hidden_states=text, img_shapes=shapes
    )


def test_flux2_references_follow_the_image():
    image = torch.cartesian_prod(
        torch.zeros(1), torch.arange(4.0), torch.arange(6.0), torch.zeros(1)
    )
    reference = torch.cartesian_prod(
        torch.tensor([10.0]), torch.arange(3.0), torch.arange(5.0), torch.zeros(1)
    )
    text = torch.zeros(1, 7, 4)
    for ids, extra in ((image, ()), (torch.cat((image, reference)), (Segment(15),))):
        found = layouts_of("Flux2Transformer2DModel", img_ids=ids[None], encoder_hidden_states=text)
        assert found == (TokenLayout(text=7, grid=(1, 4, 6), extra=extra),)


def test_conditioning_tokens_of_ltx_come_first_and_those_of_ltx2_last():
    arguments = {
        "hidden_states": torch.zeros(1, 48 + 10, 8),
        "num_frames": 2,
        "height": 4,
        "width": 6,
    }
    grid = (2, 4, 6)
    assert layouts_of("LTXVideoTransformer3DModel", **arguments) == (
        TokenLayout(text=10, grid=grid),
    )
    assert layouts_of("LTX2VideoTransformer3DModel", **arguments) == (
        TokenLayout(grid=grid, extra=(Segment(10),)),
    )
    arguments["hidden_states"] = torch.zeros(1, 40, 8)
    assert layouts_of("LTXVideoTransformer3DModel", **arguments) == ()
    assert layouts_of("LTX2VideoTransformer3DModel", **arguments) == ()


def test_a_picture_without_a_patch_has_no_layout():
    """Stock pipelines run it, on text alone."""
    arguments = {"img_ids": torch.zeros(0, 3), "encoder_hidden_states": torch.randn(1, 7, 32)}
    assert layouts_of("FluxTransformer2DModel", **arguments) == ()


def test_z_image_omni_has_no_layout():
    row, images = FAMILIES["ZImageTransformer2DModel"], [[torch.zeros(4, 1, 8, 8)]]
    arguments = {"x": images, "cap_feats": [[torch.zeros(5, 8)]]}
    assert row.layouts(PLAIN, arguments) == ()
    assert row.valid_text(PLAIN, arguments) is None


def test_block_sparse_kandinsky_has_no_layout():
    model, latent = configured(patch_size=(1, 2, 2)), torch.zeros(1, 2, 8, 12, 16)
    row = FAMILIES["Kandinsky5Transformer3DModel"]
    assert row.layouts(model, {"hidden_states": latent}) == (TokenLayout(grid=(2, 4, 6)),)
    assert row.layouts(model, {"hidden_states": latent, "sparse_params": {}}) == ()


def test_cogvideox_with_patches_over_frames():
    model = configured(patch_size=2, patch_size_t=2)
    arguments = {
        "hidden_states": torch.zeros(1, 4, 16, 8, 12),
        "encoder_hidden_states": torch.zeros(1, 9, 8),
    }
    found = FAMILIES["CogVideoXTransformer3DModel"].layouts(model, arguments)
    assert found == (TokenLayout(text=9, grid=(2, 4, 6)),)


@pytest.mark.parametrize(
    ("name", "is_cross", "kind"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1", False, "self"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2", True, "cross"),
        ("down_blocks.0.motion_modules.0.transformer_blocks.0.attn2", False, "temporal"),
        ("up_blocks.1.temp_attentions.0.transformer_blocks.0.attn1", False, "temporal"),
        ("mid_block.attentions.0.temporal_transformer_blocks.0.attn2", True, "temporal"),
        ("image_latents_temporal_encoder.attn1", False, "temporal"),
        ("transformer_in.transformer_blocks.0.attn1", False, "temporal"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.fuser.attn", False, "grounding"),
    ],
)
def test_kinds_of_unet_layers(name, is_cross, kind):
    attention = nn.Module()
    attention.is_cross_attention = is_cross
    assert unet_kind(name, attention) == kind
    assert kind in (*TARGETS, *LEFT_ALONE)


# the generic rule, and a new row


class TokensFirst(ModelMixin, ConfigMixin):
    """A denoiser of no known class: patches, then attention over them, or over text and them."""

    @register_to_config
    def __init__(self, patch_size=2, is_joint=False):
        super().__init__()
        self.patch = nn.Conv2d(4, 16, patch_size, patch_size)
        self.attn = Attention(16, heads=2, dim_head=8)

    def forward(self, hidden_states, timestep, encoder_hidden_states=None):
        x = self.patch(hidden_states).flatten(2).mT
        if self.config.is_joint:
            x = torch.cat((x, encoder_hidden_states), 1)
        return self.attn(x)


LATENT, TEXT = torch.randn(1, 4, 12, 16), torch.randn(1, 7, 16)


@torch.no_grad()
def test_generic_rule(caplog):
    model, probe = TokensFirst().eval(), GainAttnProcessor()
    want = model(LATENT, 0.5)
    with caplog.at_level(logging.WARNING), apply(model, probe):
        assert torch.equal(model(LATENT, 0.5), want)
    assert probe.calls == [TokenLayout(grid=(1, 6, 8))]
    assert "TokensFirst has no row in the layout table: its grid is guessed" in caplog.text
    with pytest.raises(NotImplementedError, match=r"pass family=Family"):
        apply(model, probe, strict=True)
    assert not model._forward_pre_hooks


@torch.no_grad()
def test_generic_rule_guesses_no_token_order():
    model, probe = TokensFirst(is_joint=True).eval(), GainAttnProcessor(gain=0.0)
    want = model(LATENT, 0.5, TEXT)
    with apply(model, probe) as handle:
        assert torch.equal(model(LATENT, 0.5, TEXT), want)
    (row,) = handle.report().layers
    assert row.reason == "55 tokens fit no guessed grid; pass family= (docs/layouts.md) (1x)"


@torch.no_grad()
def test_a_new_class_is_one_row():
    model = TokensFirst(is_joint=True).eval()

    def layouts(model, arguments):
        height, width = (n // model.config.patch_size for n in arguments["hidden_states"].shape[2:])
        text = arguments["encoder_hidden_states"].shape[1]
        return (TokenLayout(text=text, grid=(1, height, width), text_first=False),)

    row = Family(layouts=layouts, kind=lambda name, attention: "joint")
    want, probe = model(LATENT, 0.5, TEXT), GainAttnProcessor()
    with apply(model, probe, family=row, strict=True):
        assert torch.equal(model(LATENT, 0.5, TEXT), want)
    assert probe.calls == [TokenLayout(text=7, grid=(1, 6, 8), text_first=False)]
    with foveate.apply(model, LocalAttnProcessor(radius=2), family=row) as handle:
        assert not torch.allclose(model(LATENT, 0.5, TEXT), want, atol=1e-4)
    assert handle.report().layers[0].operator == "local"


def test_model_without_timestep_is_refused():
    with pytest.raises(NotImplementedError, match=r"layout of AutoencoderKL.*family=Family"):
        family_of(diffusers.AutoencoderKL())


# what is read again, and the place in the schedule


@torch.no_grad()
def test_tracker_reads_again_when_a_number_changes():
    model = TokensFirst()
    tracker = Tracker(model, FAMILIES["LTXVideoTransformer3DModel"], None, None)
    arguments = {"hidden_states": torch.zeros(1, 48, 8), "num_frames": 2, "height": 4, "width": 6}
    tracker(model, (), {**arguments, "timestep": 5})
    first = tracker.layouts
    tracker(model, (), {**arguments, "timestep": 3})
    assert tracker.layouts is first
    tracker(model, (), {**arguments, "height": 6, "width": 4})
    assert tracker.layouts == {48: TokenLayout(grid=(2, 6, 4))}


def test_tracker_reads_a_new_mask_of_the_same_shape():
    model = TokensFirst()
    tracker = Tracker(model, FAMILIES["HunyuanVideoTransformer3DModel"], None, None)
    masks = [(torch.arange(7) < n).long()[None] for n in (5, 3)]
    arguments = {
        "hidden_states": torch.zeros(1, 4, 2, 4, 6),
        "encoder_hidden_states": torch.zeros(1, 7, 8),
    }
    for mask, valid in zip(masks, (5, 3), strict=True):
        tracker(model, (), {**arguments, "encoder_attention_mask": mask})
        (padded,) = tracker.padded.values()
        assert [layout.text for layout in padded.layouts] == [valid]


@pytest.mark.parametrize(
    ("name", "given", "progress"),
    [
        ("WanTransformer3DModel", {"timestep": torch.tensor([750.0])}, 0.25),
        ("AuraFlowTransformer2DModel", {"timestep": torch.tensor([0.75])}, 0.25),
        ("Lumina2Transformer2DModel", {"timestep": torch.tensor([0.25])}, 0.25),
        ("ZImageTransformer2DModel", {"t": torch.tensor([0.25, 0.25])}, 0.25),
    ],
)
def test_place_in_the_schedule(name, given, progress):
    tracker = Tracker(TokensFirst(), FAMILIES[name], None, None)
    tracker._timestep = given[FAMILIES[name].timestep]
    assert tracker.progress() == pytest.approx(progress)
