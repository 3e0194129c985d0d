"""What every processor costs in quality on the embedded models, and what it saves.

    python -P -m foveate.pipelines.shapes.study.quality

At the base size one call, above it `foveate.progressive`. Every (model, size, method) is a file of
its own; what is there is not run again.
"""

from __future__ import annotations

import argparse
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from ....attn_processors import SoftmaxAttnProcessor
from ....attn_processors.base import AttnProcessor
from ...distill import load_student
from ...progressive import progressive
from ..load import MODELS, embedded_students, load_shapes
from ..quality import batches, call_for
from .methods import top_layout, untrained
from .pictures import SEED, Drawn, asks_of, score_methods
from .quality_report import write_quality

__all__ = ["main", "students", "study_quality"]

NUMBERS = {64: 200, 256: 100}  # captions at a size in pixels


def study_quality(
    name: str, side: int, number: int, steps: int, folder: Path, scratch: Path
) -> None:
    """Draw and score `number` captions with every processor and student, dense attention first."""
    load = cache(partial(load_shapes, name))
    asks = asks_of(number)

    def run(processor: AttnProcessor | None) -> Drawn:
        start, pictures = time.process_time(), []
        for prompts, generators in batches(asks, batch=10, seed=SEED):
            drawn = progressive(
                load(),
                prompts,
                height=side,
                width=side,
                steps=steps,
                base_size=MODELS[name].base_size,
                attention=SoftmaxAttnProcessor() if processor is None else processor,
                generator=generators,
                call=call_for(len(prompts), MODELS[name].call),
                output_type="np",
            )
            pictures.append(drawn.images)
        return Drawn(np.concatenate(pictures), time.process_time() - start, drawn.report)

    choices = {"dense": None, **untrained(name, top_layout(name, side)), **students(name)}
    dense_path = scratch / f"quality-{name}-{side}-{number}-{steps}.npy"
    score_methods(f"{name}-{side}", choices, asks, run, folder, dense_path)


def students(name: str) -> dict[str, AttnProcessor]:
    """The students of an embedded model that travel in the package."""
    teacher = f"{MODELS[name].folder}-"
    return {
        f"student, {student.removeprefix(teacher)}": load_student(student)
        for student in embedded_students()
        if student.startswith(teacher)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["sd", "flux"], choices=tuple(MODELS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(NUMBERS), choices=NUMBERS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("docs/quality"))
    parser.add_argument("--page", type=Path, default=Path("docs/quality.md"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for folder in (arguments.out, arguments.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for side in arguments.sizes:
        for name in arguments.models:
            study_quality(
                name, side, NUMBERS[side], arguments.steps, arguments.out, arguments.scratch
            )
    write_quality(arguments.out, arguments.page)


if __name__ == "__main__":
    main()
