"""Tiny image pipelines of the further families: stock pipeline and denoiser, random weights.

Text encoders and autoencoders are left out, but for Kontext's text: the pipelines take random
prompt embeddings and give latents. Builders return (pipeline, arguments); sizes are in pixels,
never square.
"""

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler
from transformers import CLIPTextModel

from tiny_pipelines import (
    clip_config,
    clip_tokenizer,
    pixart_transformer,
    t5_encoder,
    t5_tokenizer,
)


def embeds(length, width):
    return torch.randn(1, length, width)


def mask(length, valid):
    """1 for `valid` tokens of text, 0 for padding."""
    return (torch.arange(length) < valid).long()[None]


def parts(**given):
    """Arguments of a pipeline without its text encoder, tokenizer and autoencoder."""
    return {"text_encoder": None, "tokenizer": None, "vae": None, **given}


def flux_transformer(in_channels=64, **options):
    return diffusers.FluxTransformer2DModel(
        in_channels=in_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        **options,
    )


def kontext():
    pipe = diffusers.FluxKontextPipeline(
        scheduler=FlowScheduler(),
        transformer=flux_transformer(),
        vae=None,
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )
    return pipe, {
        "prompt": "a cat",
        "max_sequence_length": 7,
        "image": torch.randn(1, 16, 6, 12),  # latents of the reference
        "height": 64,
        "width": 96,
        "max_area": 64 * 96,
        "_auto_resize": False,
    }


def flux2():
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    pipe = diffusers.Flux2Pipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {"prompt_embeds": embeds(7, 32), "height": 64, "width": 96}


def chroma(dtype=torch.bool):
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    pipe = diffusers.ChromaPipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "prompt_attention_mask": mask(9, 5).to(dtype),
        "negative_prompt_embeds": embeds(9, 32),
        "negative_prompt_attention_mask": mask(9, 3).to(dtype),
        "height": 64,
        "width": 96,
    }


def chroma_bias():
    """As the stock pipeline encodes text: ones and zeros, which it adds to the logits."""
    return chroma(torch.float32)


def qwen():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=FlowScheduler(), transformer=transformer, **parts()
    )
    return pipe, {
        "prompt_embeds": embeds(9, 16),
        "prompt_embeds_mask": mask(9, 6),
        "negative_prompt_embeds": embeds(5, 16),
        "negative_prompt_embeds_mask": mask(5, 5),
        "true_cfg_scale": 3.0,
        "height": 64,
        "width": 96,
    }


def pixart():
    pipe = diffusers.PixArtSigmaPipeline(
        scheduler=diffusers.DDIMScheduler(), transformer=pixart_transformer(), **parts()
    )
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "prompt_attention_mask": mask(9, 5),
        "negative_prompt": None,
        "negative_prompt_embeds": embeds(9, 32),
        "negative_prompt_attention_mask": mask(9, 3),
        "use_resolution_binning": False,
        "height": 96,
        "width": 128,
    }


def sana():
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    pipe = diffusers.SanaPipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": embeds(9, 16),
        "prompt_attention_mask": mask(9, 5),
        "negative_prompt": None,
        "negative_prompt_embeds": embeds(9, 16),
        "negative_prompt_attention_mask": mask(9, 3),
        "use_resolution_binning": False,
        "height": 192,
        "width": 256,
    }


BUILDERS = {
    "kontext": kontext,
    "flux2": flux2,
    "chroma": chroma,
    "chroma_bias": chroma_bias,
    "qwen": qwen,
    "pixart": pixart,
    "sana": sana,
}
