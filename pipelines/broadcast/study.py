"""What broadcasting costs and gives on the embedded models, at equal calls and at equal cost.

    python -P -m foveate.pipelines.broadcast.study --out docs/broadcast

For each model: PAB at three strengths; at as many computed calls as each of them, the calibrated
plans, chosen by the curves and refined by trying; and always beside them dense attention with fewer
steps at the same cost. Then the portable
plan, the ways to hold outputs, the caches of others that are installed, and dense attention with
still fewer steps, for models in which attention takes more of the time.
Every method is a file of its own, and what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...attn_processors.broadcast import FractionPlan, PabPlan, Plan, broadcast
from ...attn_processors.broadcast.calibrated import CalibratedPlan
from ...attn_processors.broadcast.schedule import read_schedule
from ..shapes.clip_metrics import score_clip
from ..shapes.load import ALL_MODELS, VIDEO_MODELS, load_shapes
from ..shapes.metrics import score
from ..shapes.scene import Ask, sample_scene
from ..shapes.study.methods import slug
from ..shapes.training.data import held_out_clip_asks
from .calibrate import calibrate
from .peers import Peer, counted_calls, peers
from .plots import plot_curves, plot_rows
from .refine import refine
from .runs import Runs, psnr
from .tables import write_page

__all__ = ["main"]

# ranges of spatial, temporal and cross layers
_PAB = ((2, 2, 2), (3, 4, 5), (5, 7, 9))
_FEWER = (0.8, 0.7, 0.6, 0.5)  # of the steps
_STORES = ("bf16", "int8", "fp8")


@dataclass(frozen=True)
class Method:
    """One row of the table: a plan, a peer, or neither; `steps` None is the number all share."""

    name: str
    group: str
    plan: Plan | None
    store: str = "native"
    steps: int | None = None
    peer: Peer | None = None
    is_refined: bool = False


def asks_of(name: str, number: int, seed: int) -> list[Ask]:
    """What the pictures or clips of a model show."""
    if name in VIDEO_MODELS:
        return held_out_clip_asks(number, seed)
    rng = np.random.default_rng(seed)
    return [sample_scene(rng).ask for _ in range(number)]


def plan_of(name: str, steps: int, folder: Path) -> CalibratedPlan:
    """The calibration of a model, measured once; prompts of its own."""
    path = folder / f"{name}-{steps}.json"
    if path.exists():
        return CalibratedPlan.load(path)
    runs = calibration_runs(name, steps, 4)
    options = {"steps": steps, "call": runs.call, "seed": runs.seed, "refine": 0}
    plan = calibrate(runs.pipe, runs.prompts, calls=0.5, **options)
    plan.save(path)
    return plan


def calibration_runs(name: str, steps: int, number: int) -> Runs:
    """Prompts that are not compared on."""
    prompts = tuple(ask.caption for ask in asks_of(name, number, seed=1))
    call = ALL_MODELS[name].call
    return Runs(pipe=load_shapes(name), prompts=prompts, steps=steps, call=call, seed=100)


def methods(runs: Runs, plan: CalibratedPlan) -> Iterator[Method]:
    """What is compared; groups have equal computed calls."""
    schedule = read_schedule(runs.pipe.scheduler)
    layers = plan.curves.layers
    for ranges in _PAB:
        of_kind = dict(zip(("spatial", "temporal", "cross"), ranges, strict=True))
        label = f"({', '.join(str(of_kind[k]) for k in of_kind if k in layers.values())})"
        pab = PabPlan(**of_kind)
        rows = "".join(pab.table(schedule, layers).values())
        share = rows.count("#") / len(rows)
        group = f"PAB {label}"
        yield Method(f"PAB {label}", group, pab)
        yield Method("the same, forecast", group, replace(pab, is_forecast=True))
        for forecast, note in ((False, "order 0"), (True, "order 0 and 1")):
            own = replace(plan, share=share, use_forecast=forecast)
            yield Method(f"calibrated, {note}", group, own)
        own = replace(plan, share=share)
        yield Method("calibrated, refined", group, own, is_refined=True)
        cost = 1 - plan.curves.share_of_time * (1 - share)
        steps = max(1, round(cost * runs.steps))
        yield Method(f"dense, {steps} steps: equal cost", group, None, steps=steps)
    for arm in ("reuse", "forecast"):
        yield Method(f"every 2nd, {arm}", "portable", FractionPlan(arm=arm))
    for store in ("native", *_STORES):
        yield Method(f"calibrated at 1/2, {store}", "stores", replace(plan, share=0.5), store)
    for less in _FEWER:
        steps = round(less * runs.steps)
        yield Method(f"dense, {steps} steps", "fewer steps", None, steps=steps)
    for name, peer in peers(runs.pipe).items():
        yield Method(name, "peers", None, peer=peer)


def run(method: Method, runs: Runs, exact: np.ndarray, calls: int, asks: list[Ask]) -> dict:
    """Draw with one method: {psnr by picture, bind by picture, seconds, computed_share, bytes}.

    `exact` are the dense pictures, `calls` how often attention layers computed for them.
    """
    start, share, peak = time.perf_counter(), 1.0, 0
    if method.peer is not None:
        pictures, computed = run_peer(method.peer, runs)
        share, peak = computed / calls, None
    elif method.plan is None:
        pictures = replace(runs, steps=method.steps or runs.steps).pictures()
    else:
        with broadcast(runs.pipe, method.plan, store=method.store) as handle:
            pictures = runs.pictures()
            report = handle.report()
        share, peak = report.computed_share, report.peak_bytes
    return {
        "group": method.group,
        "method": method.name,
        "seconds": round(time.perf_counter() - start, 2),
        "computed_share": round(share, 4),
        "bytes": peak,
        "psnr": [round(float(value), 3) for value in psnr(pictures, exact)],
        "bind": [_binds(*pair) for pair in zip(pictures, asks, strict=True)],
    }


def _binds(picture: np.ndarray, ask: Ask) -> bool:
    """Of a picture, or of a clip, which has an axis more."""
    return bool((score_clip if picture.ndim == 4 else score)(picture, ask).bind)


def run_peer(peer: Peer, runs: Runs) -> tuple[np.ndarray, int]:
    """Pictures, and how often attention layers computed; on a copy: some leave traces behind."""
    own = replace(runs, pipe=copy.deepcopy(runs.pipe))
    with peer(own.pipe), counted_calls(own.pipe) as computed:
        return own.pictures(), len(computed)


def study(name: str, number: int, steps: int, folder: Path, refine_on: int, tries: int) -> None:
    """All methods on one model; rows are refined on so many prompts in so many tries."""
    plan = plan_of(name, steps, folder)
    plot_curves(plan, folder / f"{name}-curves.png")
    plot_rows(plan, folder / f"{name}-plan.png")
    pipe = load_shapes(name)
    asks = asks_of(name, number, seed=2)
    prompts = tuple(ask.caption for ask in asks)
    runs = Runs(pipe=pipe, prompts=prompts, steps=steps, call=ALL_MODELS[name].call)
    with counted_calls(pipe) as computed:
        exact = runs.pictures()
    for method in (Method("dense", "dense", None), *methods(runs, plan)):
        path = folder / f"{name}-{number}-{steps}-{slug(f'{method.group} {method.name}')}.json"
        if path.exists():
            continue
        rows = {}
        if method.is_refined:
            own = refine(method.plan, calibration_runs(name, steps, refine_on), tries)
            method, rows = replace(method, plan=own), {"rows": own.refined}
        found = run(method, runs, exact, len(computed), asks)
        path.write_text(json.dumps({"model": name, **found, **rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["sd", "flux"], choices=tuple(ALL_MODELS))
    parser.add_argument("--number", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--refine-on", type=int, default=8, help="prompts to refine rows on")
    parser.add_argument("--tries", type=int, default=80, help="runs to refine rows in")
    parser.add_argument("--out", type=Path, default=Path("docs/broadcast"))
    parser.add_argument("--page", type=Path, default=Path("docs/broadcast.md"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        study(
            name,
            arguments.number,
            arguments.steps,
            arguments.out,
            arguments.refine_on,
            arguments.tries,
        )
    write_page(arguments.out, arguments.page)


if __name__ == "__main__":
    main()
