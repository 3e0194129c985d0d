"""Does foveated attention hold up on trained models? Errors by layer and step, then pictures.

    python -P -m foveate.pipelines.shapes.study --out docs/foveated

Every (model, size, method) is a file of its own with one row a prompt; what is there is not run
again, so a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache, partial
from pathlib import Path

import torch

from ....attn_processors import SoftmaxAttnProcessor, apply
from ....attn_processors.base import AttnProcessor
from ..load import MODELS, load_shapes
from ..quality import draw
from .fidelity import layer_errors
from .methods import methods, top_layout
from .pictures import SEED, Drawn, asks_of, score_methods
from .report import write_report

FIDELITY_PROMPTS = 4


def study_fidelity(name: str, side: int, steps: int, folder: Path) -> None:
    path = folder / f"fidelity-{name}-{side}.json"
    if path.exists():
        return
    pipe = load_shapes(name)
    asks = asks_of(FIDELITY_PROMPTS)

    def run() -> None:
        draw(pipe, asks, size=(side, side), steps=steps, call=MODELS[name].call, batch=1)

    errors = layer_errors(pipe, methods(name, top_layout(name, side)), run)
    rounded = {
        layer: {m: [round(e, 5) for e in row] for m, row in rows.items()}
        for layer, rows in errors.items()
    }
    path.write_text(json.dumps({"steps": steps, "prompts": FIDELITY_PROMPTS, "errors": rounded}))


def study_pictures(
    name: str, side: int, number: int, steps: int, folder: Path, scratch: Path
) -> None:
    load = cache(partial(load_shapes, name))
    choices = {"dense": None, **methods(name, top_layout(name, side))}
    asks = asks_of(number)

    def run(processor: AttnProcessor | None) -> Drawn:
        with apply(load(), processor or SoftmaxAttnProcessor()) as handle:
            start = time.process_time()
            pictures = draw(
                load(),
                asks,
                size=(side, side),
                steps=steps,
                call=MODELS[name].call,
                batch=4,
                seed=SEED,
            )
            return Drawn(pictures, time.process_time() - start, handle.report())

    dense_path = scratch / f"dense-{name}-{side}-{number}-{steps}.npy"
    score_methods(f"{name}-{side}", choices, asks, run, folder, dense_path)


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
