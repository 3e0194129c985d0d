"""A model by what was typed for it: the name of an embedded one, or a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["DTYPES", "EMBEDDED", "Model", "devices", "load_model", "quieten"]

EMBEDDED = {"shapes-sd": "sd", "shapes-sd-bow": "sd-bow", "shapes-flux": "flux"}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A loaded pipeline, the side in pixels it draws best at, and the call arguments it likes."""

    pipe: DiffusionPipeline
    base_size: int
    call: Mapping[str, object]


def load_model(name: str, device: str | None = None, dtype: str | None = None) -> Model:
    """`device` None takes an accelerator where there is one, `dtype` None what suits the device."""
    import torch

    if dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    present = devices()
    device = present[0] if device is None else device
    if device.partition(":")[0] not in present:
        raise ValueError(f"--device must be {', '.join(present)} here, got {device!r}")
    torch_dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch_dtype = torch_dtype if dtype is None else getattr(torch, dtype)
    quieten()
    model = _embedded(name, torch_dtype) if name in EMBEDDED else _folder(name, torch_dtype)
    model.pipe.to(device)
    return model


def devices() -> list[str]:
    """Kinds of devices that PyTorch can use here, the CPU last."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if accelerator is None else [accelerator.type, "cpu"]


def quieten() -> None:
    """Errors only from the libraries: what they warn of concerns other models and other code."""
    # transformers first: it already warns while diffusers is imported
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def _embedded(name, torch_dtype) -> Model:
    from ..pipelines.shapes.load import MODELS, load_shapes

    known = MODELS[EMBEDDED[name]]
    pipe = load_shapes(EMBEDDED[name], torch_dtype)
    return Model(pipe=pipe, base_size=known.base_size, call=known.call)


def _folder(name, torch_dtype) -> Model:
    from diffusers import DiffusionPipeline

    from ..pipelines.sizes import base_side

    if name == "shapes-motion":
        raise ValueError(
            'shapes-motion draws clips, which no command does: foveate.load_shapes("motion")'
        )
    if not (Path(name) / "model_index.json").is_file():
        raise ValueError(
            f"--model must be {', '.join(EMBEDDED)} or a folder with a model_index.json, "
            f"as save_pretrained writes it; got {name!r}"
        )
    pipe = DiffusionPipeline.from_pretrained(name, dtype=torch_dtype, local_files_only=True)
    return Model(pipe=pipe, base_size=base_side(pipe), call={})
