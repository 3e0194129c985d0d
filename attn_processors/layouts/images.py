"""Layouts of image models: UNets and transformers."""

from __future__ import annotations

from torch import nn

from ...kernels.layout import TokenLayout
from .family import Arguments
from .grids import grid_of_ids, halved_grids, num_text, patched, prefix_lengths, with_references

__all__ = [
    "aura_flow",
    "chroma_valid_text",
    "flux",
    "image",
    "image_text",
    "lumina",
    "lumina_valid_text",
    "qwen",
    "qwen_valid_text",
    "sd3",
    "text_image",
    "unet",
    "z_image",
    "z_image_valid_text",
]

_Z_IMAGE_MULTIPLE = 32


def unet(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """The latent's grid and its halvings; frames, if any, lie in the batch."""
    height, width = arguments["sample"].shape[-2:]
    return tuple(TokenLayout(grid=(1, h, w)) for h, w in halved_grids(height, width))


def image(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """The patches alone; frames, if any, lie in the batch."""
    _, height, width = patched(model, arguments["hidden_states"])
    return (TokenLayout(grid=(1, height, width)),)


def text_image(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    grid = patched(model, arguments["hidden_states"])
    return (TokenLayout(text=num_text(arguments), grid=grid),)


def image_text(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    grid = patched(model, arguments["hidden_states"])
    return (TokenLayout(text=num_text(arguments), grid=grid, text_first=False),)


def sd3(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Joint layers, and the image-only second attention of SD 3.5."""
    return image_text(model, arguments) + image(model, arguments)


def aura_flow(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Learnt register tokens come before the text."""
    text = model.register_tokens.shape[1] + num_text(arguments)
    return (TokenLayout(text=text, grid=patched(model, arguments["hidden_states"])),)


def flux(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Grid by the image ids; tokens of other images (Kontext, Flux2) are references."""
    found = grid_of_ids(arguments["img_ids"])
    return () if found is None else with_references(num_text(arguments), *found)


def chroma_valid_text(model: nn.Module, arguments: Arguments) -> tuple[int, ...] | None:
    """The mask covers text and image."""
    mask = arguments.get("attention_mask")
    return None if mask is None else prefix_lengths(mask[:, : num_text(arguments)])


def qwen(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Grid by `img_shapes`, the first image of a sample; the further ones are references."""
    first, *others = ([tuple(shape) for shape in _listed(s)] for s in arguments["img_shapes"])
    if any(shapes != first for shapes in others):
        return ()
    sizes = [frames * height * width for frames, height, width in first]
    return with_references(num_text(arguments), first[0], sum(sizes[1:]))


def _listed(shapes: list | tuple) -> list:
    # one image of a sample may stand without its list
    return [shapes] if isinstance(shapes[0], int) else list(shapes)


def qwen_valid_text(model: nn.Module, arguments: Arguments) -> tuple[int, ...] | None:
    mask = arguments.get("encoder_hidden_states_mask")
    return None if mask is None else prefix_lengths(mask)


def lumina(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Joint layers hold the longest text of the batch; the noise refiner holds the image alone."""
    grid = patched(model, arguments["hidden_states"])
    text = max(lumina_valid_text(model, arguments))
    return TokenLayout(text=text, grid=grid), TokenLayout(grid=grid)


def lumina_valid_text(model: nn.Module, arguments: Arguments) -> tuple[int, ...]:
    return tuple(arguments["encoder_attention_mask"].bool().sum(1).tolist())


def z_image(model: nn.Module, arguments: Arguments) -> tuple[TokenLayout, ...]:
    """Image, its filling up to a multiple of 32, captions filled up likewise.

    The filling is attended to, so it counts as text. Omni mode, with images among the captions, has
    no layout.
    """
    if any(isinstance(x, list) for x in arguments["x"]):
        return ()
    grids = {_z_image_grid(model, x, arguments) for x in arguments["x"]}
    if len(grids) > 1:
        return ()
    grid = grids.pop()
    filling = -(grid[0] * grid[1] * grid[2]) % _Z_IMAGE_MULTIPLE
    text = max(z_image_valid_text(model, arguments))
    return tuple(TokenLayout(text=n, grid=grid, text_first=False) for n in (text, filling))


def _z_image_grid(model: nn.Module, x, arguments: Arguments) -> tuple[int, int, int]:
    size, frame_size = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    frames, height, width = x.shape[1:]
    return frames // frame_size, height // size, width // size


def z_image_valid_text(model: nn.Module, arguments: Arguments) -> tuple[int, ...] | None:
    """Filling of the image and caption with its filling, by sample."""
    if any(isinstance(x, list) for x in arguments["x"]):
        return None
    lengths = []
    for x, caption in zip(arguments["x"], arguments["cap_feats"], strict=True):
        frames, height, width = _z_image_grid(model, x, arguments)
        filling = -(frames * height * width) % _Z_IMAGE_MULTIPLE
        lengths.append(filling + -(-len(caption) // _Z_IMAGE_MULTIPLE) * _Z_IMAGE_MULTIPLE)
    return tuple(lengths)
