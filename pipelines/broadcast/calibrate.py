"""A plan from measurements: what reuse and forecasts do to the final latent, and the best rows.

1. A dense run: how far every layer's output is from its earlier ones, and from their extrapolation.
2. For each kind of layer and every third evaluation, a run in which that kind alone reuses there
   alone, and one in which it forecasts: the squared error of the final latent. Divided by the
   squared differences of 1, it is the weight of reuse or forecast at the evaluation; in between it
   is interpolated on a logarithmic scale. Without these weights such plans can be worse than a
   fixed one: an early difference is repaired by later steps, one in the last steps never, and a
   forecast that is as far off as a stale output, but to all sides, does less harm.
3. The rows of least weighted error for the calls, cost or quality asked for.
4. Rows near them, tried.
5. A check on prompts that were not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from ...attn_processors.broadcast import FractionPlan, TablePlan, broadcast
from ...attn_processors.broadcast.calibrated import CalibratedPlan
from ...attn_processors.broadcast.curves import Curves, rounded
from ...attn_processors.broadcast.install import attach, layer_kinds
from ...attn_processors.broadcast.schedule import read_schedule
from ...attn_processors.fingerprint import fingerprint
from ...attn_processors.hosts import denoisers_of
from ...kernels.broadcast import COMPUTE, FORECAST, MIN_EVALUATIONS, REUSE
from ...kernels.inputs import check_positive, is_number
from .record import WHOLE, Recording, layer_seconds
from .refine import quality
from .refine import refine as refine_rows
from .runs import Runs, psnr

__all__ = ["calibrate", "measure", "timed"]

_EVERY = 3  # evaluations between two of step 2
_HALVINGS = 6
_ARMS = {REUSE: "reuse", FORECAST: "forecast"}


def calibrate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    steps: int,
    calls: float | None = None,
    cost: float | None = None,
    psnr_goal: float | None = None,
    held_out: Sequence[str] = (),
    forecast: bool = True,
    refine: int = 40,
    max_bytes: int | None = None,
    call: Mapping[str, object] | None = None,
    seed: int = 0,
) -> CalibratedPlan:
    """Measure a pipeline and choose its plan: `foveate.broadcast(pipe, plan)`, `plan.save(path)`.

    prompts: 4 to 8; they are drawn together.
    calls, cost, psnr_goal: what is asked for, one of them: the share of attention calls that
        compute, the share of their time, or dB against dense on the prompts `held_out`.
    held_out: prompts for the check; needed for `psnr_goal`.
    refine: runs in which rows near those chosen are tried, 0 for none. With `held_out` they are
        taken where they are better there too.
    max_bytes: of the cache, for one picture and one branch.
    call: other arguments of the pipeline's call, such as size and guidance.

    Two denoisers of the same layers (Wan 2.2) get one plan, in which nothing is read across the
    evaluation at which the second takes over.

    Raises ValueError for bad options, schedules of fewer than 8 evaluations, and two denoisers of
    other layers.
    """
    _check(prompts, held_out, steps, refine, max_bytes)
    _check_asked(calls, cost, psnr_goal, held_out)
    runs = Runs(pipe=pipe, prompts=tuple(prompts), steps=steps, call=dict(call or {}), seed=seed)
    denoisers = list(denoisers_of(pipe, "calibrate")[0].values())
    plan = CalibratedPlan(
        curves=measure(runs),
        share=1.0 if psnr_goal is not None else calls if cost is None else cost,
        use_cost=cost is not None,
        use_forecast=forecast,
        max_bytes=max_bytes,
        model=type(denoisers[0]).__name__,
        fingerprint=",".join(map(fingerprint, denoisers)),
        scheduler=type(pipe.scheduler).__name__,
        versions={name: version(name) for name in ("diffusers", "torch")},
    )
    plan.find(read_schedule(pipe.scheduler))  # a share that is too small is refused here
    tried = replace(runs, prompts=tuple(held_out), seed=seed + len(prompts)) if held_out else None
    if psnr_goal is not None:
        plan = _least_share(plan, tried, psnr_goal)
    if refine:
        plan = refine_rows(plan, runs, refine, tried)
    return plan if tried is None else _checked(plan, tried)


def measure(runs: Runs) -> Curves:
    """Steps 1 and 2: the curves of a pipeline."""
    models = list(denoisers_of(runs.pipe, "calibrate")[0].values())
    kinds = _shared_kinds(models)
    exact, seconds, forward_seconds = timed(runs, kinds)
    timesteps = read_schedule(runs.pipe.scheduler).timesteps
    if len(timesteps) < MIN_EVALUATIONS:
        raise ValueError(
            f"{len(timesteps)} evaluations change too much from one to the next for any plan; "
            f"calibrate with {MIN_EVALUATIONS} or more"
        )
    recordings = _record(runs, models, kinds)
    errors = [_errors(recordings, name, timesteps) for name in kinds]
    reuse, forecast = (rounded(np.stack(of_arm)) for of_arm in zip(*errors, strict=True))
    num_bytes = [
        max(recording.num_bytes.get(name, 0) for recording in recordings) for name in kinds
    ]
    return Curves(
        timesteps=timesteps,
        layers=kinds,
        reuse=reuse,
        forecast=forecast,
        weight=_weights(runs, exact, kinds, REUSE, reuse[..., 0]),
        forecast_weight=_weights(runs, exact, kinds, FORECAST, forecast[..., 0, 0]),
        seconds=rounded(seconds),
        num_bytes=rounded(np.array(num_bytes, dtype=float)),
        forward_seconds=float(rounded(np.array(forward_seconds))),
    )


def timed(runs: Runs, layers: Iterable[str]) -> tuple[torch.Tensor, np.ndarray, float]:
    """Final latents, seconds of a call of each layer [L], and of a forward of the model.

    Of two denoisers, means over those that ran.
    """
    with ExitStack() as timing:
        models = denoisers_of(runs.pipe, "timed")[0].values()
        seconds = [timing.enter_context(layer_seconds(model)) for model in models]
        latents = runs.latents()
    taken = [of_model() for of_model in seconds]

    def mean(name: str) -> float:
        return float(np.mean([of_model[name] for of_model in taken if name in of_model]))

    return latents, np.array([mean(layer) for layer in layers]), mean(WHOLE)


def _shared_kinds(models: Sequence[torch.nn.Module]) -> dict[str, str]:
    """{layer: kind}, the same for every denoiser."""
    kinds, *others = (layer_kinds(model, None) for model in models)
    if any(other != kinds for other in others):
        raise ValueError(
            "the two denoisers of the pipeline have other layers, and one plan cannot serve both; "
            "use a FractionPlan, which needs no measurement"
        )
    return kinds


def _record(
    runs: Runs, models: Sequence[torch.nn.Module], kinds: Mapping[str, str]
) -> list[Recording]:
    """What the layers of each denoiser put out in a dense run."""
    recordings = [Recording() for _ in models]
    with ExitStack() as undo:
        for model, recording in zip(models, recordings, strict=True):
            dense = FractionPlan(every=1)
            attached = attach(model, dense, runs.pipe, kinds=kinds, observe=recording)
            undo.callback(attached.remove)
        runs.latents()
    return [recording for recording in recordings if recording.num_bytes]


def _errors(
    recordings: Sequence[Recording], name: str, timesteps: tuple[float, ...]
) -> list[np.ndarray]:
    """Of reuse and forecast; infinite where an output is another denoiser's."""
    found = [recording.errors(name, timesteps) for recording in recordings]
    return [np.min(of_arm, axis=0) for of_arm in zip(*found, strict=True)]


def _weights(
    runs: Runs, exact: torch.Tensor, kinds: Mapping[str, str], arm: str, errors: np.ndarray
) -> dict[str, np.ndarray]:
    """{kind: [n]} of an arm with these errors [L, n] at the evaluation: step 2."""
    n = errors.shape[1]
    known = np.isfinite(errors[0])
    places = [i for i in sorted({*range(int(known.argmax()), n - 2, _EVERY), n - 3}) if known[i]]
    todo = [(kind, i) for kind in dict.fromkeys(kinds.values()) for i in places]
    found: dict[str, list[float]] = {}
    for kind, i in tqdm(todo, desc=f"calibrate {_ARMS[arm]}", unit="run", mininterval=1):
        own = [place for place, k in enumerate(kinds.values()) if k == kind]
        once = COMPUTE * i + arm + COMPUTE * (n - i - 1)
        rows = {name: once if k == kind else COMPUTE * n for name, k in kinds.items()}
        with broadcast(runs.pipe, TablePlan(rows)):
            error = float(((runs.latents() - exact) ** 2).mean())
        moved = float((errors[own, i] ** 2).sum())
        found.setdefault(kind, []).append(max(error, 1e-20) / max(moved, 1e-20))
    every = np.arange(n)
    return {
        kind: rounded(np.exp(np.interp(every, places, np.log(values))))
        for kind, values in found.items()
    }


def _least_share(plan: CalibratedPlan, tried: Runs, goal: float) -> CalibratedPlan:
    """The plan with the smallest share of the calls whose held-out pictures reach the goal."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        try:
            found = quality(replace(plan, share=share), tried).mean()
        except ValueError:  # fewer calls than the longest gaps leave
            found = -np.inf
        low, high = (low, share) if found >= goal else (share, high)
    return replace(plan, share=high)


def _checked(plan: CalibratedPlan, tried: Runs) -> CalibratedPlan:
    """The plan with what it does on held-out prompts: dB, least dB, share of calls computed."""
    exact = tried.dense
    with broadcast(tried.pipe, plan) as handle:
        values = psnr(tried.pictures(), exact)
        share = handle.report().computed_share
    found = {"psnr": values.mean(), "worst_psnr": values.min(), "computed_share": share}
    found = {name: round(float(value), 4) for name, value in found.items()}
    return replace(plan, checked={**found, "prompts": len(tried.prompts)})


def _check(
    prompts: Sequence[str], held_out: Sequence[str], steps: int, refine: int, max_bytes: int | None
) -> None:
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts must be a list of at least one prompt, got {prompts!r}")
    if isinstance(held_out, str):
        raise ValueError(f"held_out must be a list of prompts, got {held_out!r}")
    check_positive("steps", steps)
    if not isinstance(refine, int) or refine < 0:
        raise ValueError(f"refine must be a number of runs, 0 for none, got {refine!r}")
    if max_bytes is not None:
        check_positive("max_bytes", max_bytes, least=0)


def _check_asked(
    calls: float | None, cost: float | None, psnr_goal: float | None, held_out: Sequence[str]
) -> None:
    asked = {"calls": calls, "cost": cost, "psnr_goal": psnr_goal}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one of calls, cost and psnr_goal, got {given or 'none'}")
    for name in ("calls", "cost"):
        if asked[name] is not None and not (is_number(asked[name]) and 0 < asked[name] <= 1):
            raise ValueError(f"{name} must be a share in (0, 1], got {asked[name]!r}")
    if psnr_goal is not None and not is_number(psnr_goal):
        raise ValueError(f"psnr_goal must be a number of dB, got {psnr_goal!r}")
    if psnr_goal is not None and not held_out:
        raise ValueError("psnr_goal is reached on other prompts; give held_out")
