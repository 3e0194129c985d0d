"""Does foveated attention hold up on trained models? Errors by layer and step, then pictures.

    python -P -m foveate.pipelines.shapes.study --out docs/foveated

Every (model, size, method) is a file of its own with one row a prompt; what is there is not run
again, so a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ....attn_processors import apply
from ....kernels.layout import TokenLayout
from ..load import MODELS, load_shapes
from ..metrics import psnr, score
from ..quality import draw
from ..scene import Ask
from ..training.data import held_out_asks
from .fidelity import layer_errors
from .methods import methods, slug
from .report import write_report

SEED = 500
FIDELITY_PROMPTS = 4


def asks_of(number: int) -> list[Ask]:
    """Unseen captions, a third each of one, two and three objects."""
    counts = [number // 3 + (i < number % 3) for i in range(3)]
    return [ask for i, n in enumerate(counts) for ask in held_out_asks(n, i + 1, SEED + i)]


def top_layout(pipe: DiffusionPipeline, name: str, side: int) -> TokenLayout:
    """The layout with the most tokens in a forward at `side` pixels."""
    if name == "sd":
        latent = side // pipe.vae_scale_factor
        return TokenLayout(grid=(1, latent, latent))
    tokens = side // pipe.vae_scale_factor // 2  # Flux packs two by two latents into a token
    return TokenLayout(text=MODELS[name].call["max_sequence_length"], grid=(1, tokens, tokens))


def study_fidelity(name: str, side: int, steps: int, folder: Path) -> None:
    path = folder / f"fidelity-{name}-{side}.json"
    if path.exists():
        return
    pipe = load_shapes(name)
    asks = asks_of(FIDELITY_PROMPTS)

    def run() -> None:
        draw(pipe, asks, size=(side, side), steps=steps, call=MODELS[name].call, batch=1)

    errors = layer_errors(pipe, methods(name, top_layout(pipe, name, side)), run)
    rounded = {
        layer: {m: [round(e, 5) for e in row] for m, row in rows.items()}
        for layer, rows in errors.items()
    }
    path.write_text(json.dumps({"steps": steps, "prompts": FIDELITY_PROMPTS, "errors": rounded}))


def study_pictures(
    name: str, side: int, number: int, steps: int, folder: Path, scratch: Path
) -> None:
    pipe = load_shapes(name)
    asks = asks_of(number)
    choices = {"dense": None, **methods(name, top_layout(pipe, name, side))}
    dense_path = scratch / f"dense-{name}-{side}-{number}-{steps}.npy"
    for method, processor in choices.items():
        path = folder / f"pictures-{name}-{side}-{slug(method)}.json"
        if path.exists() and (method != "dense" or dense_path.exists()):
            continue
        with nullcontext() if processor is None else apply(pipe, processor):
            drawn = draw(
                pipe,
                asks,
                size=(side, side),
                steps=steps,
                call=MODELS[name].call,
                batch=4,
                seed=SEED,
            )
        if method == "dense":
            np.save(dense_path, drawn.astype(np.float16))
        dense = np.load(dense_path).astype(np.float32)
        rows = [
            _row(picture, exact, ask)
            for picture, exact, ask in zip(drawn, dense, asks, strict=True)
        ]
        path.write_text(json.dumps({"method": method, "processor": repr(processor), "rows": rows}))


def _row(picture: np.ndarray, dense: np.ndarray, ask: Ask) -> dict:
    got = score(picture, ask)
    decibels = round(min(psnr(picture.astype(np.float16).astype(np.float32), dense), 99.0), 2)
    return {"objects": got.num_objects, "bind": got.bind, "count": got.count, "psnr": decibels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["sd", "flux"], choices=tuple(MODELS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/foveated"))
    parser.add_argument("--page", type=Path, default=Path("docs/foveated.md"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for folder in (arguments.out, arguments.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for side in arguments.sizes:
        for name in arguments.models:
            study_fidelity(name, side, arguments.steps, arguments.out)
            study_pictures(
                name, side, arguments.number, arguments.steps, arguments.out, arguments.scratch
            )
    write_report(arguments.out, arguments.page)


if __name__ == "__main__":
    main()
