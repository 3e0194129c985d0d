"""Tiny stock pipelines with random weights, made offline in a fraction of a second.

Grids are never square, so that a transposed one shows. Builders return (pipeline, arguments).
"""

import string

import diffusers
import torch
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

# image sizes in pixels (height, width), and the grid they give at the top attention level
SIZES = {
    "sd": {(48, 64): (12, 16), (32, 48): (8, 12)},
    "sdxl": {(48, 64): (12, 16), (32, 48): (8, 12)},
    "flux": {(16, 24): (8, 12), (24, 20): (12, 10)},
    "sd3": {(16, 24): (16, 24), (24, 20): (24, 20)},
    "pixart_t5": {(16, 24): (4, 6), (24, 40): (6, 10)},
}


def clip_tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "!", "<|endoftext|>"]
    tokens += [b for b in letters if b != "!"] + [b + "</w>" for b in letters]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer():
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocab += [(c, -3.0) for c in string.printable.strip()]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def clip_config(width=32):
    return CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
        projection_dim=32,
        hidden_act="gelu",
    )


def t5_encoder():
    config = T5Config(
        vocab_size=1103,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return T5EncoderModel(config)


def autoencoder(channels=(4, 8), latent=4, groups=2, **options):
    return diffusers.AutoencoderKL(
        block_out_channels=channels,
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        latent_channels=latent,
        norm_num_groups=groups,
        **options,
    )


def flow_autoencoder(latent):
    return autoencoder(
        (4,),
        latent,
        1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )


def sd():
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=2,
    )
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        vae=autoencoder((4, 8, 8)),
        text_encoder=CLIPTextModel(clip_config(8)),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"prompt": "a cat", "guidance_scale": 6.0}


def sdxl():
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=2,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading"),
        vae=autoencoder((4, 8, 8)),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
    )
    return pipe, {"prompt": "a cat", "guidance_scale": 5.0}


def flux(num_layers=1, num_single_layers=1):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    pipe = diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=flow_autoencoder(1),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )
    return pipe, {"prompt": "a cat", "max_sequence_length": 16}


def sd3():
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=flow_autoencoder(4),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
    )
    return pipe, {"prompt": "a cat", "max_sequence_length": 16}


def pixart_transformer():
    return diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        norm_type="ada_norm_single",
    )


def pixart_t5():
    pipe = diffusers.PixArtSigmaPipeline(
        transformer=pixart_transformer(),
        vae=autoencoder(),
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    options = {"use_resolution_binning": False, "clean_caption": False}
    return pipe, {"prompt": "a cat", "guidance_scale": 5.0, "max_sequence_length": 24, **options}


BUILDERS = {"sd": sd, "sdxl": sdxl, "flux": flux, "sd3": sd3, "pixart_t5": pixart_t5}


class Tiny:
    """A tiny pipeline with its denoiser; `tiny(size)` is a seeded call, giving [1, 3, H, W]."""

    def __init__(self, name, seed=0, **options):
        # beside other work on the machine, a second thread makes such small calls 50 times slower
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.name = name
        self.pipe, self.arguments = BUILDERS[name](**options)
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        self.sizes = list(SIZES[name])

    @property
    def model(self):
        return getattr(self.pipe, "transformer", None) or self.pipe.unet

    def grid(self, size=None):
        return SIZES[self.name][self.sizes[0] if size is None else size]

    @torch.no_grad()
    def __call__(self, size=None, steps=2, **arguments):
        height, width = self.sizes[0] if size is None else size
        generator = torch.Generator().manual_seed(0)
        result = self.pipe(
            **{"generator": generator, **self.arguments, **arguments},
            height=height,
            width=width,
            num_inference_steps=steps,
            output_type="pt",
        )
        return result.images
