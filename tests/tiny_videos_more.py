"""More tiny video pipelines, as in tiny_videos: Mochi, Kandinsky 5, Allegro, LTX 2."""

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler

from tiny_images import embeds, mask, parts


def mochi():
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        out_channels=None,
        qk_norm="rms_norm",
        text_embed_dim=32,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    pipe = diffusers.MochiPipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "prompt_attention_mask": mask(9, 5).bool(),
        "negative_prompt_embeds": embeds(9, 32),
        "negative_prompt_attention_mask": mask(9, 3).bool(),
        "height": 96,
        "width": 128,
        "num_frames": 13,
    }


def kandinsky5():
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=16,
        patch_size=(1, 2, 2),
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        visual_cond=False,
        attention_type="regular",
    )
    # the stock model starts as the identity
    for name, weight in transformer.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(weight, std=0.1)
    pipe = diffusers.Kandinsky5T2VPipeline(
        scheduler=FlowScheduler(),
        transformer=transformer,
        **parts(text_encoder_2=None, tokenizer_2=None),
    )
    lengths = torch.tensor([0, 7], dtype=torch.int32)
    return pipe, {
        "prompt_embeds_qwen": embeds(7, 16),
        "prompt_embeds_clip": torch.randn(1, 16),
        "prompt_cu_seqlens": lengths,
        "negative_prompt_embeds_qwen": embeds(7, 16),
        "negative_prompt_embeds_clip": torch.randn(1, 16),
        "negative_prompt_cu_seqlens": lengths,
        "height": 96,
        "width": 128,
        "num_frames": 9,
    }


def allegro():
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=16,
        sample_height=12,
        sample_frames=3,
        caption_channels=24,
    )
    pipe = diffusers.AllegroPipeline(
        scheduler=diffusers.EulerAncestralDiscreteScheduler(), transformer=transformer, **parts()
    )
    return pipe, {
        "prompt_embeds": embeds(9, 24),
        "prompt_attention_mask": mask(9, 5),
        "negative_prompt": None,
        "negative_prompt_embeds": embeds(9, 24),
        "negative_prompt_attention_mask": mask(9, 3),
        "height": 96,
        "width": 128,
        "num_frames": 12,
        "clean_caption": False,
    }


class Connectors(torch.nn.Module):
    """Text embeddings of the video and of the audio, as they are."""

    # a pipeline asks its modules where they are
    device = torch.device("cpu")
    dtype = torch.float32

    def forward(self, prompt_embeds, prompt_attention_mask, padding_side):
        return prompt_embeds, prompt_embeds, prompt_attention_mask


def ltx2_autoencoders():
    """The pipeline reads sizes and means of both."""
    video = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        patch_size_t=1,
    )
    audio = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    return {"vae": video, "audio_vae": audio}


def ltx2():
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=16,
        rope_double_precision=False,
        rope_type="split",
    )
    pipe = diffusers.LTX2Pipeline(
        scheduler=FlowScheduler(),
        transformer=transformer,
        connectors=Connectors(),
        **parts(vocoder=None, **ltx2_autoencoders()),
    )
    # the tiny autoencoder halves; the smallest height is 32
    pipe.vae_spatial_compression_ratio = 8
    return pipe, {
        "prompt_embeds": embeds(9, 16),
        "prompt_attention_mask": mask(9, 5),
        "negative_prompt_embeds": embeds(9, 16),
        "negative_prompt_attention_mask": mask(9, 3),
        "spatio_temporal_guidance_blocks": [1],
        "height": 32,
        "width": 64,
        "num_frames": 3,
    }


BUILDERS = {"mochi": mochi, "kandinsky5": kandinsky5, "allegro": allegro, "ltx2": ltx2}
