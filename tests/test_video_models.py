"""Video denoisers of the table that are driven without a pipeline: identity, layouts, kinds."""

import diffusers
import pytest
import torch

from foveate.attn_processors import LocalAttnProcessor, SoftmaxAttnProcessor, apply
from foveate.kernels import local_keys
from foveate.kernels.layout import TokenLayout
from probes import GainAttnProcessor


def stable_video():
    model = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=2,
        projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8,
    )
    # as many frames as the lower level has tokens
    latent = torch.randn(1, 12, 8, 6, 8)
    return model, (latent, 1.0, torch.randn(1, 1, 8), torch.randn(1, 3))


def text_to_video():
    model = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    return model, (torch.randn(1, 4, 12, 6, 8), 1, torch.randn(1, 7, 8))


WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def wan_vace():
    model = diffusers.WanVACETransformer3DModel(**WAN, vace_layers=[0], vace_in_channels=6)
    latent, control = torch.randn(1, 4, 3, 8, 12), torch.randn(1, 6, 3, 8, 12)
    return model, (latent, torch.tensor([500.0]), torch.randn(1, 7, 16), None, control)


def sky_reels():
    model = diffusers.SkyReelsV2Transformer3DModel(**WAN)
    return model, (torch.randn(1, 4, 3, 8, 12), torch.tensor([500]), torch.randn(1, 7, 16))


UNET_GRIDS = {(1, 6, 8), (1, 3, 4)}


@pytest.mark.parametrize(
    ("build", "grids", "kinds"),
    [
        (stable_video, UNET_GRIDS, {"self", "cross", "temporal"}),
        (text_to_video, UNET_GRIDS, {"self", "cross", "temporal"}),
        (wan_vace, {(3, 4, 6)}, {"self", "cross"}),
        (sky_reels, {(3, 4, 6)}, {"self", "cross"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@torch.no_grad()
def test_model(build, grids, kinds):
    model, arguments = build()
    model.eval()
    want = model(*arguments, return_dict=False)[0]
    with apply(model, SoftmaxAttnProcessor()):
        assert torch.equal(model(*arguments, return_dict=False)[0], want)
    probe = GainAttnProcessor(gain=0.0)
    with apply(model, probe) as handle:
        assert not torch.allclose(model(*arguments, return_dict=False)[0], want)
    assert set(probe.calls) == {TokenLayout(grid=grid) for grid in grids}
    assert {row.kind for row in handle.report().layers} == kinds


@torch.no_grad()
def test_a_radius_along_frames_reaches_the_operator():
    model, arguments = wan_vace()
    model.eval()
    stock = model(*arguments, return_dict=False)[0]
    found = {}
    for frames_radius in (None, 2, 1):
        processor = LocalAttnProcessor(radius=2, frames_radius=frames_radius)
        with apply(model, processor) as handle:
            found[frames_radius] = model(*arguments, return_dict=False)[0]
        layout = TokenLayout(grid=(3, 4, 6))
        keys = {row.keys.needed for row in handle.report().layers if row.kind == "self"}
        assert keys == {local_keys(layout, 2, frames_radius).needed}
    assert torch.equal(found[2], found[None])
    assert not torch.allclose(found[1], found[2])
    with apply(model, LocalAttnProcessor(radius=8, frames_radius=9)):
        torch.testing.assert_close(model(*arguments, return_dict=False)[0], stock)
