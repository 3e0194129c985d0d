"""Pictures above the size a model was trained at: a draft, then enlarge, re-noise and denoise.

Every stage enlarges the one before bicubically, by at most 2, and runs image-to-image from there
(SDEdit, arXiv:2108.01073), the recipe published with CLEAR (arXiv:2412.16112). The draft settles
what is where; the stages draw it finer, which is local work: attention can be local there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from PIL import Image

from ..attn_processors import apply
from ..attn_processors.base import AttnProcessor
from ..attn_processors.report import Report
from .progress_bar import progress_bar, progress_bar_config
from .sizes import base_side, check_size, size_multiple, stage_sizes

__all__ = ["Progressive", "progressive"]

Attention = AttnProcessor | Mapping[str, AttnProcessor]
Pictures = list[Image.Image] | np.ndarray | torch.Tensor

_OURS = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type")
_OURS_TOO = ("image", "strength", "latents", "return_dict")


@dataclass(frozen=True, kw_only=True)
class Progressive:
    """What `progressive` drew.

    sizes: (height, width) of the stages in pixels, draft first.
    report: of the last stage, None where no attention was given.
    """

    images: Pictures
    sizes: tuple[tuple[int, int], ...]
    report: Report | None


def progressive(
    pipe: DiffusionPipeline,
    prompt: str | list[str],
    *,
    height: int,
    width: int,
    steps: int,
    base_size: int | None = None,
    strength: float = 0.5,
    attention: Attention | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    call: Mapping[str, object] | None = None,
    output_type: str = "pil",
) -> Progressive:
    """Draw `prompt` at height x width pixels with a stock text-to-image pipeline.

    A size not above the base is one ordinary call. The pipeline is left as it was, its scheduler
    included; large pictures may want `pipe.enable_vae_tiling()`.

    steps: of the schedule; the draft runs all, every further stage the last `strength` of them.
    base_size: side in pixels of the square pictures the model draws best; None asks the pipeline.
    strength: in (0, 1]; how far back towards noise an enlarged picture goes.
    attention: as `foveate.apply` takes it, in every stage but the draft; None changes nothing.
    generator: seeds all stages, one after another.
    call: further arguments of the pipeline's call, the same in every stage, such as guidance_scale.
    output_type: of the pipeline.

    Raises ValueError for sizes the pipeline does not take, options out of range and arguments it
    does not know; NotImplementedError where diffusers has no image-to-image form of the pipeline.
    """
    call = {} if call is None else call
    check_size(pipe, height, width)
    base_size = base_side(pipe) if base_size is None else base_size
    sizes = stage_sizes(height, width, base_size=base_size, multiple=size_multiple(pipe))
    pipes = [pipe] * len(sizes)
    if len(sizes) > 1:
        pipes[1:] = [_image_to_image(pipe)] * (len(sizes) - 1)
    _check_options(steps, strength, call, pipes)
    if attention is not None:
        apply(pipe, attention).remove()  # refuses before time is spent on the draft

    images, report = None, None
    with _scheduler_kept(pipe):
        for i, size in enumerate(sizes):
            is_last = i == len(sizes) - 1
            arguments = {
                **call,
                "prompt": prompt,
                "num_inference_steps": steps,
                "generator": generator,
                "output_type": output_type if is_last else "pt",
            }
            if i > 0:
                arguments |= {"image": _enlarge(images, size), "strength": strength}
            processor = attention if i > 0 or is_last else None
            images, report = _run(pipes[i], arguments, size, processor)
    return Progressive(images=images, sizes=sizes, report=report)


def _image_to_image(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The image-to-image pipeline made of the same components, with the same progress bar."""
    try:
        other = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError as error:
        raise NotImplementedError(
            f"diffusers has no image-to-image form of {type(pipe).__name__}, "
            f"so it draws up to its base size only ({error})"
        ) from None
    other.set_progress_bar_config(**progress_bar_config(pipe))
    return other


def _check_options(
    steps: int, strength: float, call: Mapping[str, object], pipes: Sequence[DiffusionPipeline]
) -> None:
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    if len(pipes) > 1 and int(steps * strength) < 1:
        raise ValueError(
            f"steps * strength must be >= 1, got {steps} * {strength}; raise one of them"
        )
    for pipe in (pipes[0], pipes[-1]):
        known = set(inspect.signature(type(pipe).__call__).parameters) - {*_OURS, *_OURS_TOO}
        for name in call:
            if name not in known:
                raise ValueError(
                    f"call has {name!r}, which {type(pipe).__name__} does not take "
                    "or progressive sets itself"
                )


@contextmanager
def _scheduler_kept(pipe: DiffusionPipeline) -> Iterator[None]:
    """Every stage sets the timesteps anew; afterwards they are as before."""
    state = dict(vars(pipe.scheduler))
    try:
        yield
    finally:
        vars(pipe.scheduler).clear()
        vars(pipe.scheduler).update(state)


def _run(
    pipe: DiffusionPipeline,
    arguments: dict[str, object],
    size: tuple[int, int],
    attention: Attention | None,
) -> tuple[Pictures, Report | None]:
    """One stage; image-to-image pipelines that take no size go by their image."""
    known = inspect.signature(type(pipe).__call__).parameters
    arguments |= {
        name: n for name, n in zip(("height", "width"), size, strict=True) if name in known
    }
    with progress_bar(pipe, title=f"{size[1]}x{size[0]}"):
        if attention is None:
            return pipe(**arguments).images, None
        with apply(pipe, attention) as handle:
            images = pipe(**arguments).images
            return images, handle.report()


def _enlarge(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pictures [B, 3, h, w] in 0..1 at a new size, bicubically."""
    return F.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
