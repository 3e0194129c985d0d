"""Put a trained pipeline into the package: half-precision weights and the training log.

python -P -m foveate.pipelines.shapes.training.export sd --run runs/sd
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from ..load import (
    ALL_MODELS,
    DIFFERENCE,
    MODELS,
    VIDEO_MODELS,
    load_motion,
    load_shapes,
    weights_folder,
)

__all__ = ["export", "main"]

LOGS = Path(__file__).parent / "logs"
UNWANTED = ("_name_or_path", "name_or_path")


def export(name: str, run: Path) -> Path:
    """Write the embedded model `name` from the run's pipeline; on a base only what is its own."""
    folder = weights_folder(name)
    if name in VIDEO_MODELS:
        pipe = load_motion(run / "pipeline", torch.float16)
        pipe.motion_adapter.save_pretrained(folder / "motion_adapter")
        _save_own(pipe, load_shapes("sd", torch.float16), folder)
    else:
        pipe = DiffusionPipeline.from_pretrained(run / "pipeline", local_files_only=True)
        pipe.to(torch.float16)
        base = MODELS[name].base
        if base is None:
            pipe.save_pretrained(folder)
        else:
            _save_own(pipe, load_shapes(base, torch.float16), folder)
    _clean(folder)
    shutil.copyfile(run / "log.jsonl", LOGS / f"{name}.jsonl")
    return folder


def _save_own(pipe: DiffusionPipeline, base: DiffusionPipeline, folder: Path) -> None:
    """The text encoder, and the tensors of the UNet that differ from those of the base."""
    pipe.text_encoder.save_pretrained(folder / "text_encoder")
    tensors, shared = pipe.unet.state_dict(), base.unet.state_dict()
    own = {name: tensors[name] for name in shared if not torch.equal(tensors[name], shared[name])}
    save_file(own, folder / DIFFERENCE)


def _clean(folder: Path) -> None:
    """Drop where the parts came from, and a key AutoencoderTiny saves but warns of when loading."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        kept = {key: content[key] for key in content if key not in UNWANTED}
        if path.parent.name == "vae":
            kept.pop("block_out_channels", None)
        if kept != content:
            path.write_text(json.dumps(kept, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(ALL_MODELS))
    parser.add_argument("--run", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.name, arguments.run)


if __name__ == "__main__":
    main()
