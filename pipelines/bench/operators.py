"""Times attention operators on one shape, in turns, each against dense attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from .candidate import REFUSALS, Candidate, Prepared, Refused, reason_of
from .case import Case
from .flex import flex_candidates
from .gpus import gpu_of
from .own import dense, own_candidates
from .peers import peer_candidates
from .timing import interleave, ratio, spread, stopwatch
from .work import least_bytes, num_flops

__all__ = ["Timed", "candidates", "time_operators"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One implementation at one grid: forward, or forward and backward.

    Seconds are a median and its quartiles; speed is dense attention's time over this one's. Keys
    are means over the grid queries. flops_per_second counts the keys needed; roofline is the share
    of what the device could do at best with that work. What does not apply is None.
    """

    grid: str
    tokens: int
    method: str
    impl: str
    seconds: float
    low: float
    high: float
    rounds: int
    speed: float | None
    needed: float
    visited: float | None
    mask_seconds: float | None
    preparation_seconds: float | None
    peak_bytes: int | None
    flops_per_second: float
    roofline: float | None


def candidates(case: Case, radii: Sequence[int], flex: bool = True) -> list[Candidate]:
    """Everything that may run, dense attention first."""
    discs = [one for radius in radii for one in flex_candidates(case, radius)] if flex else []
    return [dense(case), *own_candidates(case, radii), *discs, *peer_candidates(case, radii)]


def time_operators(
    case: Case,
    entries: Sequence[Candidate],
    rounds: int,
    threads: int = 1,
    show: bool = True,
    backward: bool = False,
) -> tuple[list[Timed], list[Refused]]:
    """Rows of the candidates that run, the dense one among them, and the reasons of those not.

    With `backward` a call is the forward pass and the gradients of q, k and v.
    """
    with torch.inference_mode(not backward):
        return _time(case, entries, rounds, stopwatch(case.device, threads), show, backward)


def _time(case, entries, rounds, seconds_of, show, backward):
    qkv = case.qkv()
    calls, prepared, refused = {}, {}, []
    for entry in tqdm(entries, desc=f"{case.name}, first calls", disable=not show):
        try:
            prepared[entry.name] = entry.prepare(*qkv)
            call = (_differentiated if backward else _bound)(prepared[entry.name], qkv)
            call()
            calls[entry.name] = call
        except REFUSALS as error:
            refused.append(Refused(entry.method, entry.impl, case.name, reason_of(error)))
    peaks = {name: _peak_bytes(call, case.device) for name, call in calls.items()}
    taken = interleave(calls, rounds, seconds_of, case.name, show)
    base = taken.get(dense(case).name)
    return [
        _row(case, backward, one, prepared[one.name], taken[one.name], base, peaks[one.name])
        for one in entries
        if one.name in taken
    ], refused


def _bound(prepared: Prepared, qkv: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
    q, k, v = (prepared.arrange(x) for x in qkv)
    return lambda: prepared.attend(q, k, v)


def _differentiated(prepared: Prepared, qkv: Sequence[torch.Tensor]) -> Callable[[], object]:
    leaves = [prepared.arrange(x).detach().requires_grad_() for x in qkv]
    grad_out = torch.randn_like(leaves[0])
    return lambda: torch.autograd.grad(prepared.attend(*leaves), leaves, grad_out)


def _peak_bytes(call: Callable[[], torch.Tensor], device: str) -> int | None:
    """Device memory that a call takes beside its inputs, the result included; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _row(case, backward, entry, prepared, seconds, base, peak) -> Timed:
    took, flops = spread(seconds), num_flops(case, entry.needed, backward)
    roofline = None
    if case.device.startswith("cuda"):
        gpu = gpu_of(torch.cuda.get_device_name(case.device))
        if gpu is not None:
            roofline = gpu.floor(flops, least_bytes(case, backward), case.dtype) / took.median
    return Timed(
        grid=case.name,
        tokens=case.layout.num_tokens,
        method=entry.method,
        impl=entry.impl,
        seconds=took.median,
        low=took.low,
        high=took.high,
        rounds=took.rounds,
        speed=None if base is None else ratio(seconds, base),
        needed=entry.needed,
        visited=entry.visited,
        mask_seconds=prepared.mask_seconds,
        preparation_seconds=prepared.preparation_seconds,
        peak_bytes=peak,
        flops_per_second=flops / took.median,
        roofline=roofline,
    )
