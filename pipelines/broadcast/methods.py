"""The rows of the study's tables: what is compared, at equal calls and beside them, and one run."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...attn_processors.broadcast import FractionPlan, PabPlan, Plan, broadcast
from ...attn_processors.broadcast.calibrated import CalibratedPlan
from ...attn_processors.broadcast.schedule import read_schedule
from ..shapes.clip_metrics import score_clip
from ..shapes.metrics import score
from ..shapes.scene import Ask
from .peers import Peer, counted_calls, peers
from .runs import Runs, psnr

__all__ = ["Method", "at_equal_calls", "methods", "run", "run_peer"]

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


def methods(runs: Runs, plan: CalibratedPlan) -> Iterator[Method]:
    """All that is compared."""
    yield from at_equal_calls(runs, plan)
    yield from others(runs, plan)


def at_equal_calls(runs: Runs, plan: CalibratedPlan) -> Iterator[Method]:
    """A group for each strength of PAB."""
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


def others(runs: Runs, plan: CalibratedPlan) -> Iterator[Method]:
    """What has no PAB of as many calls beside it."""
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
