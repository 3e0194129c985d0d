"""Picture sizes: what a pipeline accepts, what it was trained at, the stages to a larger one."""

from __future__ import annotations

import math

from diffusers import DiffusionPipeline

__all__ = ["base_side", "check_size", "size_multiple", "stage_sizes"]

# diffusers' pipelines around a UNet refuse other sizes, whatever their autoencoder
_UNET_MULTIPLE = 8


def size_multiple(pipe: DiffusionPipeline) -> int:
    """Pixels of which height and width must be multiples."""
    multiple = pipe.image_processor.config.vae_scale_factor  # Flux counts its packing by 2 in it
    if getattr(pipe, "unet", None) is not None:
        return math.lcm(multiple, _UNET_MULTIPLE)
    # Stable Diffusion 3 names its patches on the pipeline
    return math.lcm(multiple, pipe.vae_scale_factor * getattr(pipe, "patch_size", 1))


def check_size(pipe: DiffusionPipeline, height: int, width: int) -> None:
    """ValueError unless the pipeline draws exactly height x width pixels."""
    multiple = size_multiple(pipe)
    for name, pixels in (("height", height), ("width", width)):
        if pixels < 1 or pixels % multiple:
            below = pixels // multiple * multiple
            near = " or ".join(str(n) for n in (below, below + multiple) if n > 0)
            raise ValueError(
                f"{name} must be a positive multiple of {multiple} for {type(pipe).__name__}, "
                f"got {pixels}; nearest: {near}"
            )


def base_side(pipe: DiffusionPipeline) -> int:
    """Side in pixels of the square pictures that the pipeline draws when it is given no size."""
    size = getattr(pipe, "default_sample_size", None)
    if size is None:
        size = getattr(getattr(pipe, "unet", None), "config", {}).get("sample_size")
    if size is None:
        raise ValueError(
            f"{type(pipe).__name__} does not tell the size it was trained at; pass base_size"
        )
    return (size if isinstance(size, int) else min(size)) * pipe.vae_scale_factor


def stage_sizes(
    height: int, width: int, *, base_size: int, multiple: int
) -> tuple[tuple[int, int], ...]:
    """(height, width) of every stage, the last as asked.

    The first has base_size * base_size pixels in the same aspect ratio, each further one at most
    twice its sides, all in equal ratio. Sides are rounded to `multiple`. One stage where the size
    asked is not above the base.
    """
    if base_size < 1:
        raise ValueError(f"base_size must be >= 1 pixel, got {base_size}")
    scale = math.sqrt(height * width) / base_size
    count = max(0, math.ceil(math.log2(scale) - 1e-9))  # enlargements; 2.0 is one
    sizes = [
        tuple(_round(side * scale ** (i / count - 1), multiple) for side in (height, width))
        for i in range(count)
    ]
    return (*sizes, (height, width))


def _round(pixels: float, multiple: int) -> int:
    return max(1, round(pixels / multiple)) * multiple
