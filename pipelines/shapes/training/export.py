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

from ..load import MODELS, weights_folder

__all__ = ["export", "main"]

UNWANTED = ("_name_or_path", "name_or_path")


def export(name: str, run: Path) -> Path:
    """Write the embedded model `name` from the run's pipeline."""
    pipe = DiffusionPipeline.from_pretrained(run / "pipeline", local_files_only=True)
    folder = weights_folder(name)
    pipe.to(torch.float16).save_pretrained(folder)
    _clean(folder)
    shutil.copyfile(run / "log.jsonl", Path(__file__).parent / "logs" / f"{name}.jsonl")
    return folder


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
    parser.add_argument("name", choices=tuple(MODELS))
    parser.add_argument("--run", type=Path, required=True)
    arguments = parser.parse_args()
    export(arguments.name, arguments.run)


if __name__ == "__main__":
    main()
