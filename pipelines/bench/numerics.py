"""How far every implementation lies from its own attention in float64, on the same inputs.

The inputs are rounded to the type first, so the deviation is what the implementation adds. A scale
s gives logits of standard deviation s: 1 is what untrained layers see, 16 a softmax that is almost
a choice of one key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from .candidate import REFUSALS, Candidate, Prepared, Refused, reason_of
from .case import Case
from .own import DENSE, SDPA

__all__ = ["SCALES", "Deviation", "deviations", "failures"]

SCALES = (1.0, 4.0, 16.0)
OWN = ("torch", "triton")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """|out - exact| / |exact| over a call, root mean square, and the worst element's share of it.

    worst: the largest |out - exact| of one element over the root mean square of exact.
    plain_rms: relative_rms of the same attention in plain PyTorch, where it is the measure.
    """

    grid: str
    tokens: int
    method: str
    impl: str
    scale: float
    relative_rms: float
    worst: float
    plain_rms: float | None = None


@torch.inference_mode()
def deviations(
    case: Case,
    entries: Sequence[Candidate],
    scales: Sequence[float] = SCALES,
    show: bool = True,
) -> tuple[list[Deviation], list[Refused]]:
    """A row for every candidate that runs and every scale, and the reasons of those not."""
    rows, refused = [], []
    inputs = [case.qkv(scale) for scale in scales]
    for entry in tqdm(entries, desc=f"{case.name}, numerics", disable=not show):
        try:
            prepared = entry.prepare(*inputs[0])
            rows += [
                _deviation(case, entry, prepared, scale, qkv)
                for scale, qkv in zip(scales, inputs, strict=True)
            ]
        except REFUSALS as error:
            refused.append(Refused(entry.method, entry.impl, case.name, reason_of(error)))
    return rows, refused


def _deviation(
    case: Case, entry: Candidate, prepared: Prepared, scale: float, qkv: Sequence[torch.Tensor]
) -> Deviation:
    out = prepared.restore(prepared.attend(*(prepared.arrange(x) for x in qkv)))
    exact = entry.exact(*(_double(x) for x in qkv))
    size = exact.square().mean().sqrt()
    return Deviation(
        grid=case.name,
        tokens=case.layout.num_tokens,
        method=entry.method,
        impl=entry.impl,
        scale=scale,
        relative_rms=_relative_rms(out, exact),
        worst=float((_double(out) - exact).abs().max() / size),
        plain_rms=None if entry.plain is None else _relative_rms(entry.plain(*qkv), exact),
    )


def _relative_rms(out: torch.Tensor, exact: torch.Tensor) -> float:
    error = (_double(out) - exact).square().mean()
    return float((error / exact.square().mean()).sqrt())


def _double(x: torch.Tensor) -> torch.Tensor:
    # MPS has no float64
    return (x.cpu() if x.device.type == "mps" else x).double()


def failures(
    rows: Sequence[Deviation], refused: Sequence[Refused], factor: float = 2.0
) -> list[str]:
    """What is wrong with this package's operators: broken, or `factor` times PyTorch's own error.

    That is the error of its dense attention in the same type, at the same grid and scale, or of
    the candidate's own formula in plain PyTorch. What is NotImplementedError is missing and not
    broken.
    """
    dense = {(r.grid, r.scale): r.relative_rms for r in rows if (r.method, r.impl) == (DENSE, SDPA)}
    found = [
        f"{one.method} ({one.impl}) at {one.grid}: {one.reason}"
        for one in refused
        if one.impl in OWN and not one.reason.startswith(NotImplementedError.__name__)
    ]
    for row in rows:
        plain = dense.get((row.grid, row.scale), torch.nan)
        limit = factor * (plain if row.plain_rms is None else row.plain_rms)
        # not <=, so that NaN fails
        if row.impl in OWN and not row.relative_rms <= limit:
            found.append(
                f"{row.method} ({row.impl}) at {row.grid}, scale {row.scale:g}: relative error "
                f"{row.relative_rms:.1e}, at most {limit:.1e} expected"
            )
    return found
