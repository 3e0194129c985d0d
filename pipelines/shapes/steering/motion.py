"""Does MotionBoost raise motion and steady objects? Clips with and without, same prompts and noise.

    python -P -m foveate.pipelines.shapes.steering.motion --out docs/motion

Every setting is a file of its own with one row a prompt, written batch by batch, so a stopped run
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline

from ....attn_processors.modulation import MotionBoost, modulate
from ...page import markdown_table, put_on_page
from ..clip_metrics import score_clip
from ..load import VIDEO_MODELS, load_shapes
from ..metrics import bootstrap, paired_bootstrap
from ..quality import draw
from ..scene import Ask
from ..study.methods import slug
from ..training.data import held_out_clip_asks

__all__ = ["SETTINGS", "boost", "report"]

# alpha (self-guidance) and beta (enhancement); the first is the pipeline as it is
SETTINGS = ((0.0, 1.0), (0.0, 1.5), (0.0, 2.0), (0.3, 1.0), (0.6, 1.0))
COLUMNS = ("path", "jitter", "flicker", "direction", "bind")
SEED = 1_300
BATCH = 5


def boost(
    pipe: AnimateDiffPipeline,
    setting: tuple[float, float],
    asks: Sequence[Ask],
    steps: int,
    path: Path,
) -> None:
    """The rows of one setting, those that `path` lacks."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    size = VIDEO_MODELS["motion"].base_size
    for start in range(len(rows), len(asks), BATCH):
        batch = asks[start : start + BATCH]
        active = nullcontext() if setting == (0, 1) else modulate(pipe, [MotionBoost(*setting)])
        # half the time where a CPU has matrix units; the model was trained like this
        with active, torch.autocast("cpu", torch.bfloat16):
            clips = draw(
                pipe,
                batch,
                size=(size, size),
                steps=steps,
                call=VIDEO_MODELS["motion"].call,
                seed=SEED + start,
            )
        rows += [asdict(score_clip(*pair)) for pair in zip(clips, batch, strict=True)]
        path.write_text(json.dumps({"setting": setting, "steps": steps, "rows": rows}))


def report(folder: Path, page: Path, number: int) -> None:
    """Put the table between the markers of `page`."""
    read = {s: json.loads(_path(folder, s, number).read_text())["rows"] for s in SETTINGS}
    plain = read[SETTINGS[0]]
    lines = [
        [f"{alpha:g}", f"{beta:g}", *(_cell(rows, plain, name) for name in COLUMNS)]
        for (alpha, beta), rows in read.items()
    ]
    put_on_page(page, "boost", markdown_table(["alpha", "beta", *map(str.upper, COLUMNS)], lines))


def _path(folder: Path, setting: tuple[float, float], number: int) -> Path:
    return folder / f"rows-{number}-{slug('alpha {:g} beta {:g}'.format(*setting))}.json"


def _cell(rows: list[dict], plain: list[dict], name: str) -> str:
    """The mean, and its change against the plain pipeline with the 95 % interval."""
    pairs = [(one[name], two[name]) for one, two in zip(rows, plain, strict=True)]
    pairs = [pair for pair in pairs if None not in pair]
    mean = f"{bootstrap([one for one, _ in pairs]).mean:.3f}"
    if rows == plain:
        return mean
    change = paired_bootstrap(*zip(*pairs, strict=True))
    return f"{mean} ({change.low:+.3f} to {change.high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=50)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("docs/motion"))
    parser.add_argument("--page", type=Path, default=Path("docs/motion.md"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    asks = held_out_clip_asks(arguments.number, SEED)
    pipe = load_shapes("motion")
    for setting in SETTINGS:
        path = _path(arguments.out, setting, arguments.number)
        boost(pipe, setting, asks, arguments.steps, path)
    report(arguments.out, arguments.page, arguments.number)


if __name__ == "__main__":
    main()
