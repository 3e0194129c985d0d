"""Do modulations steer? Pictures with and without, same prompts and noise, and what they cost.

    python -P -m foveate.pipelines.shapes.steering --out docs/modulation

Every (model, method) is a file of its own with one row a prompt; what is there is not run again, so
a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from ....attn_processors.modulation import SelfTemperature, modulate
from ..load import MODELS, load_shapes
from ..quality import draw
from ..study.methods import slug
from .cost import costs
from .edits import edit_rows
from .entropy import Entropy
from .masks import mask_overlaps
from .measure import BATCH, draw_batch, row_of
from .methods import ONE_BY_ONE, methods_of
from .prompts import Prompt, prompts
from .report import write_edits, write_report

SEED = 700
FACTORS = (0.75, 1.0, 1.5, 2.0, 3.0)
MASKS = 20
EDITS = 200
COST_STEPS = 8
COST_ROUNDS = 5


def steer(
    pipe: DiffusionPipeline, name: str, asked: list[Prompt], steps: int, folder: Path
) -> None:
    """The rows of every method."""
    for method in methods_of(name):
        path = folder / f"rows-{name}-{len(asked)}-{slug(method)}.json"
        if path.exists():
            continue
        rows, size = [], 1 if method in ONE_BY_ONE else BATCH
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            # half the time where a CPU has matrix units; the models were trained like this
            with torch.autocast("cpu", torch.bfloat16):
                pictures = draw_batch(pipe, name, method, batch, start, steps)
            rows += [row_of(*pair) for pair in zip(pictures, batch, strict=True)]
        path.write_text(json.dumps({"method": method, "steps": steps, "rows": rows}))


def entropies(pipe: DiffusionPipeline, name: str, asked: list[Prompt], folder: Path) -> None:
    """Entropy at every temperature, mean over layers and steps of a few prompts."""
    path = folder / f"entropy-{name}.json"
    if path.exists():
        return
    found = {}
    for factor in FACTORS:
        reader = Entropy()
        with modulate(pipe, [SelfTemperature(factor), reader]) as run:
            asks = [prompt.ask for prompt in asked[:2]]
            draw(pipe, asks, size=(64, 64), steps=4, call=MODELS[name].call, batch=2)
            values = run.read_by(reader).values
        found[f"{factor:g}"] = sum(values) / len(values)
    path.write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["sd", "sd-bow", "flux"], choices=tuple(MODELS)
    )
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/modulation"))
    parser.add_argument("--page", type=Path, default=Path("docs/modulation.md"))
    parser.add_argument(
        "--edit-page", type=Path, default=Path("docs/modulation/prompt_to_prompt.md")
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    asked = prompts(arguments.number, SEED)
    for name in arguments.models:
        pipe = load_shapes(name)
        steer(pipe, name, asked, arguments.steps, arguments.out)
        entropies(pipe, name, asked, arguments.out)
        path = arguments.out / f"masks-{name}.json"
        if not path.exists():
            found = mask_overlaps(pipe, name, asked[:MASKS], arguments.steps)
            path.write_text(json.dumps(found))
        path = arguments.out / f"cost-{name}.json"
        if not path.exists():
            found = costs(pipe, name, asked[0], COST_STEPS, COST_ROUNDS)
            path.write_text(json.dumps(found))
    write_report(arguments.out, arguments.page, arguments.number)
    if "sd" in arguments.models:
        path = arguments.out / "edits-sd.json"
        if not path.exists():
            found = edit_rows(load_shapes("sd"), "sd", asked[:EDITS], arguments.steps)
            path.write_text(json.dumps(found))
        write_edits(path, arguments.edit_page)


if __name__ == "__main__":
    main()
