"""More tiny pipelines, for broadcasting, which needs no token layout of them: video and PixArt."""

import diffusers
import torch

from tiny_pipelines import autoencoder, t5_encoder, t5_tokenizer


def wan(two_denoisers=False):
    def transformer():
        return diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=256,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )

    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    pipe = diffusers.WanPipeline(
        transformer=transformer(),
        transformer_2=transformer() if two_denoisers else None,
        boundary_ratio=0.875 if two_denoisers else None,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    return pipe, {"negative_prompt": "bad", "guidance_scale": 6.0, "num_frames": 5}


def cogvideox():
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = diffusers.CogVideoXPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    return pipe, {"negative_prompt": "", "guidance_scale": 6.0, "num_frames": 5}


def _patches(**options):
    return {
        "sample_size": 8,
        "patch_size": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 3,
        "caption_channels": 32,
        "in_channels": 4,
        "cross_attention_dim": 24,
        "out_channels": 8,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        **options,
    }


def latte():
    transformer = diffusers.LatteTransformer3DModel(**_patches(num_layers=1, video_length=4))
    pipe = diffusers.LattePipeline(
        transformer=transformer,
        vae=autoencoder(),
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    arguments = {"negative_prompt": "bad", "guidance_scale": 5.0, "video_length": 4}
    return pipe, {**arguments, "height": 16, "width": 24, "clean_caption": False}


def pixart():
    pipe = diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(**_patches(num_layers=2)),
        vae=autoencoder(),
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    arguments = {"guidance_scale": 5.0, "use_resolution_binning": False, "clean_caption": False}
    return pipe, {**arguments, "height": 16, "width": 24}


BUILDERS = {"wan": wan, "cogvideox": cogvideox, "latte": latte, "pixart": pixart}


class Latents:
    """A tiny pipeline; `run(steps)` is a seeded call that stops at the final latent."""

    def __init__(self, name, **options):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.pipe, self.arguments = BUILDERS[name](**options)
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()

    @property
    def model(self):
        return self.pipe.transformer

    @torch.no_grad()
    def __call__(self, steps=10, seed=0, **arguments):
        called = {
            "prompt": "a cat",
            "height": 32,
            "width": 48,
            **self.arguments,
            **arguments,
        }
        if "max_sequence_length" not in called and "video_length" not in called:
            called["max_sequence_length"] = 16
        result = self.pipe(
            **called,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        )
        return result.images if hasattr(result, "images") else result.frames
