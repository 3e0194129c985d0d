"""The embedded models: stock diffusers pipelines whose trained weights travel in the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, FluxPipeline

__all__ = ["MODELS", "ShapesModel", "embedded_students", "load_shapes", "weights_folder"]

_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class ShapesModel:
    """What a caller should know of an embedded model: base size and call arguments it likes.

    token: pixels to a side of the finest image token.
    """

    folder: str
    base_size: int  # pixels
    token: int
    call: dict[str, float | int | str]


MODELS = {
    "sd": ShapesModel("shapes-sd", 64, 4, {"guidance_scale": 3.0}),
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


def weights_folder(name: str) -> Path:
    """Folder of the embedded model `name` ("sd", "flux"), as `save_pretrained` writes it."""
    if name not in MODELS:
        raise ValueError(
            f"unknown embedded model {name!r}; expected one of {', '.join(map(repr, MODELS))}"
        )
    return _WEIGHTS / MODELS[name].folder


def embedded_students() -> dict[str, Path]:
    """Name -> folder of the students of the embedded models that travel in the package."""
    return {
        path.parent.name: path.parent for path in sorted(_WEIGHTS.glob("students/*/student.json"))
    }


def load_shapes(name: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """The embedded pipeline: "sd" a StableDiffusionPipeline, "flux" a FluxPipeline; offline."""
    pipe = DiffusionPipeline.from_pretrained(
        str(weights_folder(name)), dtype=dtype, local_files_only=True
    )
    if isinstance(pipe, FluxPipeline):  # its constructor fixes 128, whatever the model
        pipe.default_sample_size = MODELS[name].base_size // pipe.vae_scale_factor
    return pipe
