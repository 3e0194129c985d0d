"""More tiny image pipelines: HunyuanDiT, AuraFlow, CogView4, Lumina 2, Z-Image."""

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler

from tiny_images import embeds, mask, parts


def hunyuan_dit():
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=16,
        activation_fn="gelu-approximate",
    )
    pipe = diffusers.HunyuanDiTPipeline(
        scheduler=diffusers.DDPMScheduler(),
        transformer=transformer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts(text_encoder_2=None, tokenizer_2=None),
    )
    return pipe, {
        "prompt_embeds": embeds(77, 32),
        "prompt_embeds_2": embeds(256, 32),
        "negative_prompt_embeds": embeds(77, 32),
        "negative_prompt_embeds_2": embeds(256, 32),
        "prompt_attention_mask": mask(77, 5),
        "prompt_attention_mask_2": mask(256, 5),
        "negative_prompt_attention_mask": mask(77, 3),
        "negative_prompt_attention_mask_2": mask(256, 3),
        "use_resolution_binning": False,
        "height": 96,
        "width": 128,
    }


def aura_flow():
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=32,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=256,
    )
    # as the stock model is initialised, attention hardly shows
    for name, weight in transformer.named_parameters():
        if ".attn." in name and weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.5)
    pipe = diffusers.AuraFlowPipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "prompt_attention_mask": mask(9, 5),
        "negative_prompt_embeds": embeds(9, 32),
        "negative_prompt_attention_mask": mask(9, 3),
        "height": 96,
        "width": 128,
    }


def cogview4():
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
    )
    pipe = diffusers.CogView4Pipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": embeds(16, 32),
        "negative_prompt_embeds": embeds(16, 32),
        "height": 96,
        "width": 128,
    }


def lumina2():
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(64, 64, 64),
        cap_feat_dim=32,
    )
    pipe = diffusers.Lumina2Pipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": embeds(9, 32),
        "prompt_attention_mask": mask(9, 6),
        "negative_prompt_embeds": embeds(9, 32),
        "negative_prompt_attention_mask": mask(9, 3),
        "height": 96,
        "width": 128,
    }


def z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    # the stock model leaves its padding tokens uninitialised
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    pipe = diffusers.ZImagePipeline(scheduler=FlowScheduler(), transformer=transformer, **parts())
    return pipe, {
        "prompt_embeds": [torch.randn(40, 16)],
        "negative_prompt_embeds": [torch.randn(5, 16)],
        "guidance_scale": 4.0,
        "height": 96,
        "width": 112,
    }


BUILDERS = {
    "hunyuan_dit": hunyuan_dit,
    "aura_flow": aura_flow,
    "cogview4": cogview4,
    "lumina2": lumina2,
    "z_image": z_image,
}
