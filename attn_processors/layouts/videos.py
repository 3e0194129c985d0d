"""Layouts of video transformers, whose calls hold all frames."""

from __future__ import annotations

from torch import nn

from ...kernels.layout import TokenLayout
from .family import Arguments
from .grids import Grid, num_text, patched, with_references

__all__ = [
    "cogvideox",
    "hunyuan_video",
    "hunyuan_video_15",
    "hunyuan_video_15_valid_text",
    "hunyuan_video_valid_text",
    "kandinsky5",
    "ltx",
    "ltx2",
    "mochi",
    "video",
]


def video(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """The patches alone, of a latent [B, C, f, h, w]."""
    return (TokenLayout(grid=patched(model, arguments["hidden_states"])),)


def cogvideox(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Text, then the patches of a latent [B, f, C, h, w]."""
    grid = patched(model, arguments["hidden_states"], axes=(1, -2, -1))
    return (TokenLayout(text=num_text(arguments), grid=grid),)


def hunyuan_video(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    grid = patched(model, arguments["hidden_states"])
    return (TokenLayout(text=num_text(arguments), grid=grid, text_first=False),)


def hunyuan_video_valid_text(model: nn.Module, arguments: Arguments) -> tuple[int, ...]:
    return tuple(arguments["encoder_attention_mask"].bool().sum(1).tolist())


def hunyuan_video_15(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """The image, byT5 and language model tokens of the prompt come after the video."""
    names = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
    text = sum(arguments[name].shape[1] for name in names)
    grid = patched(model, arguments["hidden_states"])
    return (TokenLayout(text=text, grid=grid, text_first=False),)


def hunyuan_video_15_valid_text(model: nn.Module, arguments: Arguments) -> tuple[int, ...]:
    """The model puts what is no padding first; an image of zeros is padding."""
    images = arguments["image_embeds"]
    num_image = images.shape[1] if bool(images.any()) else 0
    masks = (arguments["encoder_attention_mask"], arguments["encoder_attention_mask_2"])
    valid = sum(mask.bool().sum(1) for mask in masks)
    return tuple((valid + num_image).tolist())


def mochi(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """One call a sample, after its padding has been cut off."""
    _, height, width = patched(model, arguments["hidden_states"])
    grid = (arguments["hidden_states"].shape[2], height, width)
    texts = arguments["encoder_attention_mask"].bool().sum(1).tolist()
    return tuple(TokenLayout(text=n, grid=grid, text_first=False) for n in sorted(set(texts)))


def ltx(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Grid given in latent units; tokens of conditioning frames come before it."""
    grid, rest = _given_grid(arguments)
    return () if rest < 0 else (TokenLayout(text=rest, grid=grid),)


def ltx2(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Grid given in latent units; tokens of key frames come after it."""
    grid, rest = _given_grid(arguments)
    return () if rest < 0 else with_references(0, grid, rest)


def _given_grid(arguments: Arguments) -> tuple[Grid, int]:
    """The grid that `forward` is told, and how many tokens there are beyond it."""
    frames, height, width = (arguments[name] for name in ("num_frames", "height", "width"))
    num_tokens = arguments["hidden_states"].shape[1]
    return (frames, height, width), num_tokens - frames * height * width


def kandinsky5(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Patches of a latent [B, f, h, w, C]; block-sparse attention reorders them."""
    if arguments.get("sparse_params") is not None:
        return ()
    return (TokenLayout(grid=patched(model, arguments["hidden_states"], axes=(1, 2, 3))),)
