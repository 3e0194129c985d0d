"""The table itself: one row a model class."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from . import images, videos
from .family import Family
from .generic import generic_family
from .kinds import always, by_name, unet_kind

__all__ = ["FAMILIES", "attention_layers", "family_of", "known_family"]

# layer names: text refiners first, then self-attention and what reads the text
_ATTN1_SELF = by_name(("*.attn1", "self"), ("*", "cross"))
_REFINED = by_name(("context_embedder.*", "text"), ("*", "joint"))
_SPATIAL = by_name(("temporal_*", "temporal"), ("*.attn1", "self"), ("*", "cross"))
_TWO_REFINERS = by_name(("context_refiner.*", "text"), ("noise_refiner.*", "self"), ("*", "joint"))
_Z_IMAGE = by_name(
    ("context_refiner.*", "text"),
    ("siglip_refiner.*", "text"),
    ("noise_refiner.*", "self"),
    ("*", "joint"),
)
_KANDINSKY = by_name(
    ("text_transformer_blocks.*", "text"), ("*.self_attention", "self"), ("*", "cross")
)
_LTX2 = by_name(
    ("*.attn1", "self"), ("*.audio_attn1", "audio"), ("*connector*", "text"), ("*", "cross")
)
_SD3 = by_name(("*.attn2", "self"), ("*", "joint"))

_UNET = Family(layouts=images.unet, kind=unet_kind)
_WAN = Family(layouts=videos.video, kind=_ATTN1_SELF)
_FLUX = Family(
    layouts=images.flux, kind=always("joint"), sources=("img_ids",), timestep_scale=1000.0
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        # UNets
        "UNet2DConditionModel": _UNET,
        "UNetMotionModel": _UNET,
        "UNet3DConditionModel": _UNET,
        "UNetSpatioTemporalConditionModel": _UNET,
        "I2VGenXLUNet": _UNET,
        # images
        "FluxTransformer2DModel": _FLUX,
        "Flux2Transformer2DModel": _FLUX,
        "ChromaTransformer2DModel": Family(
            layouts=images.flux,
            kind=always("joint"),
            valid_text=images.chroma_valid_text,
            sources=("img_ids", "attention_mask"),
            timestep_scale=1000.0,
        ),
        "SD3Transformer2DModel": Family(layouts=images.sd3, kind=_SD3),
        "QwenImageTransformer2DModel": Family(
            layouts=images.qwen,
            kind=always("joint"),
            valid_text=images.qwen_valid_text,
            sources=("encoder_hidden_states_mask",),
            timestep_scale=1000.0,
        ),
        "PixArtTransformer2DModel": Family(layouts=images.image, kind=_ATTN1_SELF),
        "SanaTransformer2DModel": Family(layouts=images.image, kind=_ATTN1_SELF),
        "HunyuanDiT2DModel": Family(layouts=images.image, kind=_ATTN1_SELF),
        "AuraFlowTransformer2DModel": Family(
            layouts=images.aura_flow, kind=always("joint"), timestep_scale=1000.0
        ),
        "CogView4Transformer2DModel": Family(layouts=images.text_image, kind=always("joint")),
        "Lumina2Transformer2DModel": Family(
            layouts=images.lumina,
            kind=_TWO_REFINERS,
            valid_text=images.lumina_valid_text,
            padding_last=True,
            sources=("encoder_attention_mask",),
            timestep_scale=-1000.0,
            timestep_offset=1000.0,
        ),
        "ZImageTransformer2DModel": Family(
            layouts=images.z_image,
            kind=_Z_IMAGE,
            valid_text=images.z_image_valid_text,
            timestep="t",
            timestep_scale=-1000.0,
            timestep_offset=1000.0,
        ),
        # videos
        "WanTransformer3DModel": _WAN,
        "WanVACETransformer3DModel": _WAN,
        "SkyReelsV2Transformer3DModel": _WAN,
        "AllegroTransformer3DModel": Family(layouts=videos.video, kind=_ATTN1_SELF),
        "LatteTransformer3DModel": Family(layouts=images.image, kind=_SPATIAL),
        "CogVideoXTransformer3DModel": Family(layouts=videos.cogvideox, kind=always("joint")),
        "HunyuanVideoTransformer3DModel": Family(
            layouts=videos.hunyuan_video,
            kind=_REFINED,
            valid_text=videos.hunyuan_video_valid_text,
            sources=("encoder_attention_mask",),
        ),
        "HunyuanVideo15Transformer3DModel": Family(
            layouts=videos.hunyuan_video_15,
            kind=_REFINED,
            valid_text=videos.hunyuan_video_15_valid_text,
            sources=("encoder_attention_mask", "encoder_attention_mask_2", "image_embeds"),
        ),
        "LTXVideoTransformer3DModel": Family(layouts=videos.ltx, kind=_ATTN1_SELF),
        "LTX2VideoTransformer3DModel": Family(layouts=videos.ltx2, kind=_LTX2),
        "MochiTransformer3DModel": Family(
            layouts=videos.mochi, kind=always("joint"), sources=("encoder_attention_mask",)
        ),
        "Kandinsky5Transformer3DModel": Family(layouts=videos.kandinsky5, kind=_KANDINSKY),
    }
)


def known_family(model: nn.Module) -> Family | None:
    """The row of the model's class, or of a class it inherits from."""
    names = (base.__name__ for base in type(model).__mro__)
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)


def family_of(model: nn.Module) -> Family:
    """The row of the model's class, or of a class it inherits from; else the generic rule's.

    Raises NotImplementedError where neither is possible.
    """
    family = known_family(model) or generic_family(model)
    if family is not None:
        return family
    raise NotImplementedError(
        f"foveate does not know the token layout of {type(model).__name__}, and its forward has no "
        f"timestep with a latent to guess from. Known: {', '.join(FAMILIES)}. "
        "Pass family=Family(...), one row: see docs/layouts.md"
    )


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every attention module of the model by name: those that hold a callable `processor`."""
    return {
        name: module
        for name, module in model.named_modules()
        if callable(getattr(module, "processor", None))
    }
