"""Tiny video pipelines of the further families: stock pipeline and denoiser, random weights.

As in tiny_images. Two or three latent frames.
"""

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler

from tiny_images import embeds, mask, parts


def wan_transformer():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def wan():
    pipe = diffusers.WanPipeline(
        scheduler=FlowScheduler(shift=7.0), transformer=wan_transformer(), **parts()
    )
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "negative_prompt_embeds": embeds(9, 32),
        "height": 96,
        "width": 128,
        "num_frames": 9,
    }


def hunyuan_video():
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    pipe = diffusers.HunyuanVideoPipeline(
        scheduler=FlowScheduler(shift=7.0),
        transformer=transformer,
        **parts(text_encoder_2=None, tokenizer_2=None),
    )
    return pipe, {
        "prompt_embeds": embeds(9, 16),
        "prompt_attention_mask": mask(9, 5),
        "pooled_prompt_embeds": torch.randn(1, 8),
        "height": 64,
        "width": 96,
        "num_frames": 9,
    }


def hunyuan_video_15_vae():
    """The pipeline reads its number of channels."""
    return diffusers.AutoencoderKLHunyuanVideo15(
        block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, latent_channels=32
    )


def hunyuan_video_15():
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=65,
        out_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
        task_type="t2v",
    )
    pipe = diffusers.HunyuanVideo15Pipeline(
        scheduler=FlowScheduler(shift=7.0),
        transformer=transformer,
        guider=diffusers.guiders.ClassifierFreeGuidance(guidance_scale=3.0),
        **parts(text_encoder_2=None, tokenizer_2=None, vae=hunyuan_video_15_vae()),
    )
    return pipe, {
        "prompt_embeds": embeds(9, 16),
        "prompt_embeds_mask": mask(9, 5),
        "prompt_embeds_2": embeds(6, 16),
        "prompt_embeds_mask_2": mask(6, 4),
        "negative_prompt_embeds": embeds(9, 16),
        "negative_prompt_embeds_mask": mask(9, 3),
        "negative_prompt_embeds_2": embeds(6, 16),
        "negative_prompt_embeds_mask_2": mask(6, 0),
        "height": 64,
        "width": 96,
        "num_frames": 9,
    }


def ltx():
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=32,
    )
    pipe = diffusers.LTXPipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "prompt_attention_mask": mask(9, 5),
        "negative_prompt_embeds": embeds(9, 32),
        "negative_prompt_attention_mask": mask(9, 3),
        "height": 128,
        "width": 192,
        "num_frames": 9,
    }


def cogvideox():
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=2,
        sample_width=16,
        sample_height=12,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=9,
        use_rotary_positional_embeddings=True,
    )
    pipe = diffusers.CogVideoXPipeline(
        scheduler=diffusers.DDIMScheduler(), transformer=transformer, **parts()
    )
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "negative_prompt_embeds": embeds(9, 32),
        "max_sequence_length": 9,
        "height": 96,
        "width": 128,
        "num_frames": 9,
    }


def motion_pipe(second, initial, std, **given):
    """AnimateDiff of two levels; `second` is the kind of blocks of the lower one.

    Weights of the motion modules whose names hold one of `initial` are drawn with this deviation.
    """
    channels = (8, 8)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", f"{second}DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", f"{second}UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=2,
    )
    adapter = diffusers.MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
    )
    for name, weight in adapter.named_parameters():
        if any(part in name for part in initial):
            torch.nn.init.normal_(weight, std=std)
    return diffusers.AnimateDiffPipeline(
        unet=unet, motion_adapter=adapter, scheduler=diffusers.DDIMScheduler(), **parts(**given)
    )


def animatediff():
    pipe = motion_pipe("", ["proj_out"], 0.1)
    # twelve frames: as many as the grid at the lower level has tokens
    return pipe, {
        "prompt_embeds": embeds(7, 8),
        "negative_prompt_embeds": embeds(7, 8),
        "num_frames": 12,
        "height": 48,
        "width": 64,
    }


def latte():
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=12,
    )
    pipe = diffusers.LattePipeline(
        scheduler=diffusers.DDIMScheduler(), transformer=transformer, **parts()
    )
    # twelve frames: as many as a frame has tokens
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "negative_prompt": None,
        "negative_prompt_embeds": embeds(9, 32),
        "height": 48,
        "width": 64,
        "video_length": 12,
        "clean_caption": False,
    }


BUILDERS = {
    "wan": wan,
    "hunyuan_video": hunyuan_video,
    "hunyuan_video_15": hunyuan_video_15,
    "ltx": ltx,
    "cogvideox": cogvideox,
    "animatediff": animatediff,
    "latte": latte,
}
