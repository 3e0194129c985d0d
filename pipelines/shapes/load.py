"""The embedded models: stock diffusers pipelines whose trained weights travel in the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AnimateDiffPipeline,
    DiffusionPipeline,
    FluxPipeline,
    MotionAdapter,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file
from transformers import CLIPTextModel

__all__ = [
    "ALL_MODELS",
    "DIFFERENCE",
    "MODELS",
    "VIDEO_MODELS",
    "ShapesModel",
    "embedded_students",
    "load_motion",
    "load_shapes",
    "weights_folder",
]

_WEIGHTS = Path(__file__).parent / "weights"
DIFFERENCE = "unet.safetensors"  # tensors of a UNet that differ from those of its base


@dataclass(frozen=True, slots=True)
class ShapesModel:
    """What a caller should know of an embedded model: base size and call arguments it likes.

    token: pixels to a side of the finest image token.
    base: the embedded model it shares all with but its text encoder and part of its UNet.
    """

    folder: str
    base_size: int  # pixels
    token: int
    call: dict[str, float | int | str]
    base: str | None = None


MODELS = {
    "sd": ShapesModel("shapes-sd", 64, 4, {"guidance_scale": 3.0}),
    "sd-bow": ShapesModel("shapes-sd-bow", 64, 4, {"guidance_scale": 3.0}, base="sd"),
    "flux": ShapesModel(
        "shapes-flux",
        64,
        8,
        {
            "guidance_scale": 1.0,
            "true_cfg_scale": 3.0,
            "negative_prompt": "",
            "max_sequence_length": 32,
        },
    ),
}
VIDEO_MODELS = {"motion": ShapesModel("shapes-motion", 64, 4, {"guidance_scale": 3.0})}
ALL_MODELS = MODELS | VIDEO_MODELS


def weights_folder(name: str) -> Path:
    """Folder of the embedded model `name` ("sd", "sd-bow", "flux", "motion").

    As `save_pretrained` writes it; of a model on the base of another only what is its own.
    """
    if name not in ALL_MODELS:
        raise ValueError(
            f"unknown embedded model {name!r}; expected one of {', '.join(map(repr, ALL_MODELS))}"
        )
    return _WEIGHTS / ALL_MODELS[name].folder


def embedded_students() -> dict[str, Path]:
    """Name -> folder of the students of the embedded models that travel in the package."""
    return {
        path.parent.name: path.parent for path in sorted(_WEIGHTS.glob("students/*/student.json"))
    }


def load_shapes(name: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """The embedded pipeline, offline.

    "sd" and "sd-bow" are StableDiffusionPipelines, "flux" is a FluxPipeline, "motion" an
    AnimateDiffPipeline.
    Raises ValueError for a model that is unknown or whose weights are not in the package.
    """
    folder = weights_folder(name)
    if not folder.exists():
        raise ValueError(
            f"the weights of {folder.name} are not in this package, expected {folder}; "
            "train and export them with foveate.pipelines.shapes.training"
        )
    if name in VIDEO_MODELS:
        return load_motion(folder, dtype)
    if MODELS[name].base is not None:
        return on_base(load_shapes(MODELS[name].base, dtype), folder, dtype)
    pipe = DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
    if isinstance(pipe, FluxPipeline):  # its constructor fixes 128, whatever the model
        pipe.default_sample_size = MODELS[name].base_size // pipe.vae_scale_factor
    return pipe


def on_base(
    pipe: StableDiffusionPipeline, folder: Path, dtype: torch.dtype
) -> StableDiffusionPipeline:
    own = load_file(folder / DIFFERENCE)
    pipe.unet.load_state_dict({**pipe.unet.state_dict(), **own})
    encoder = CLIPTextModel.from_pretrained(
        folder / "text_encoder", dtype=dtype, local_files_only=True
    )
    return StableDiffusionPipeline(
        **{**pipe.components, "text_encoder": encoder}, requires_safety_checker=False
    )


def load_motion(folder: Path, dtype: torch.dtype = torch.float32) -> AnimateDiffPipeline:
    """`shapes-sd` with the motion modules, text encoder and cross-attention of a folder."""
    base = on_base(load_shapes("sd", dtype), folder, dtype)
    adapter = MotionAdapter.from_pretrained(
        folder / "motion_adapter", dtype=dtype, local_files_only=True
    )
    pipe = AnimateDiffPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        motion_adapter=adapter,
        scheduler=base.scheduler,
    )
    pipe.unet.eval()  # diffusers leaves the UNet it makes in training mode
    return pipe
