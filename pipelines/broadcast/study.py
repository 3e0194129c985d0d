"""What broadcasting costs and gives on the embedded models, at equal calls and at equal cost.

    python -P -m foveate.pipelines.broadcast.study --out docs/broadcast

For each model: PAB at three strengths; at as many computed calls as each of them, the calibrated
plans, chosen by the curves and refined by trying; and always beside them dense attention with fewer
steps at the same cost. Then the portable plan, the ways to hold outputs, the caches of others that
are installed, and dense attention with still fewer steps, for models in which attention takes more
of the time. Every method is a file of its own, and what is there is not run again.

With `--size` the first part alone, at a larger size: there attention takes more of the time. The
curves are those of the model's own size, only their times are taken anew; nothing is refined.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...attn_processors.broadcast.calibrated import CalibratedPlan
from ..shapes.load import ALL_MODELS, VIDEO_MODELS, load_shapes
from ..shapes.scene import Ask, sample_scene
from ..shapes.study.methods import slug
from ..shapes.training.data import held_out_clip_asks
from .calibrate import calibrate, timed
from .methods import Method, at_equal_calls, methods, run
from .peers import counted_calls
from .plots import plot_curves, plot_rows
from .refine import refine
from .runs import Runs
from .tables import write_page

__all__ = ["main"]

# seeds of prompts and of noise
_CALIBRATION = 1, 100
_CHECK = 3, 200
_COMPARED = 2, 0


def asks_of(name: str, number: int, seed: int) -> list[Ask]:
    """What the pictures or clips of a model show."""
    if name in VIDEO_MODELS:
        return held_out_clip_asks(number, seed)
    rng = np.random.default_rng(seed)
    return [sample_scene(rng).ask for _ in range(number)]


def plan_of(runs: Runs, path: Path) -> CalibratedPlan:
    """The calibration of a model, measured once on the prompts of `runs`."""
    if not path.exists():
        options = {"steps": runs.steps, "call": runs.call, "seed": runs.seed, "refine": 0}
        calibrate(runs.pipe, runs.prompts, calls=0.5, **options).save(path)
    return CalibratedPlan.load(path)


def refined(
    plan: CalibratedPlan, runs: Runs, tries: int, check: Runs, path: Path
) -> CalibratedPlan:
    """The plan with rows refined on `runs`, once for each share: {share: {kind: row}} in a file.

    Without rows where they were no better on `check`.
    """
    found = json.loads(path.read_text()) if path.exists() else {}
    share = f"{plan.share:.4f}"
    if share not in found:
        found[share] = dict(refine(plan, runs, tries, check).refined)
        path.write_text(json.dumps(found, indent=1))
    return replace(plan, refined=found[share])


@dataclass(frozen=True, kw_only=True)
class Study:
    """All methods on one model: how many prompts and steps, what rows are refined on, and how."""

    name: str
    number: int
    steps: int
    folder: Path
    refine_on: int
    tries: int
    size: int | None = None

    def run(self) -> None:
        own = f"{self.name}-{self.steps}"
        plan = plan_of(self._runs(4, _CALIBRATION), self.folder / f"{own}.json")
        asks = asks_of(self.name, self.number, _COMPARED[0])
        runs = self._runs(self.number, _COMPARED, self.size)
        if self.size is None:
            plot_curves(plan, self.folder / f"{self.name}-curves.png")
            plot_rows(plan, self.folder / f"{self.name}-plan.png")
            compared = methods(runs, plan)
        else:
            one = replace(runs, prompts=runs.prompts[:1])
            _, seconds, forward_seconds = timed(one, plan.curves.layers)
            curves = replace(plan.curves, seconds=seconds, forward_seconds=forward_seconds)
            plan = replace(plan, curves=curves)
            compared = (m for m in at_equal_calls(runs, plan) if not m.is_refined)
        with counted_calls(runs.pipe) as computed:
            exact = runs.pictures()
        for method in (Method("dense", "dense", None), *compared):
            path = self.folder / f"{self._stem}-{slug(f'{method.group} {method.name}')}.json"
            if not path.exists():
                found = run(self._ready(method), runs, exact, len(computed), asks)
                path.write_text(json.dumps({"model": self.name, **found}))

    @property
    def _stem(self) -> str:
        place = self.name if self.size is None else f"{self.name}@{self.size}"
        return f"{place}-{self.number}-{self.steps}"

    def _runs(self, number: int, seeds: tuple[int, int], size: int | None = None) -> Runs:
        """Prompts and noise of these seeds; the model's own size unless it is given."""
        of_prompts, seed = seeds
        prompts = tuple(ask.caption for ask in asks_of(self.name, number, of_prompts))
        call = ALL_MODELS[self.name].call | ({"height": size, "width": size} if size else {})
        pipe = load_shapes(self.name)
        return Runs(pipe=pipe, prompts=prompts, steps=self.steps, call=call, seed=seed)

    def _ready(self, method: Method) -> Method:
        """The method with its rows refined, where they are to be."""
        if not method.is_refined:
            return method
        path = self.folder / f"{self.name}-{self.steps}-refined.json"
        runs, check = (self._runs(self.refine_on, seeds) for seeds in (_CALIBRATION, _CHECK))
        return replace(method, plan=refined(method.plan, runs, self.tries, check, path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["sd", "flux"], choices=tuple(ALL_MODELS))
    parser.add_argument("--number", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--size", type=int, help="pixels; the model's own size unless given")
    parser.add_argument("--refine-on", type=int, default=8, help="prompts to refine rows on")
    parser.add_argument("--tries", type=int, default=80, help="runs to refine rows in")
    parser.add_argument("--out", type=Path, default=Path("docs/broadcast"), dest="folder")
    parser.add_argument("--page", type=Path, default=Path("docs/broadcast.md"))
    parser.add_argument("--threads", type=int, default=1)
    options = vars(parser.parse_args())
    models, page, threads = (options.pop(name) for name in ("models", "page", "threads"))
    torch.set_num_threads(threads)
    options["folder"].mkdir(parents=True, exist_ok=True)
    for name in models:
        Study(name=name, **options).run()
    write_page(options["folder"], page)


if __name__ == "__main__":
    main()
