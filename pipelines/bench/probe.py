"""Whether every implementation of every operator runs here, and gives the right numbers.

A tiny call on random input, not an import: a kernel may be there and not run, or run and be wrong.
"torch" and "triton" are compared with the operator's reference in float64; "reference", where the
operator has options under which it is dense attention, with PyTorch's own under these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from ...kernels import (
    agent_attention,
    foveated_attention,
    hybrid_attention,
    linear_attention,
    local_attention,
    neighborhood_attention,
    softmax_attention,
    window_attention,
)
from .candidate import Candidate, Prepared
from .case import Case
from .numerics import deviations
from .peers import peer_candidates

__all__ = ["CANNOT", "IMPLS", "OK", "WRONG", "Probe", "probe"]

IMPLS = ("reference", "torch", "triton")
OK, CANNOT, WRONG = "ok", "cannot run", "wrong"

_WIDE = 16  # a window that covers the grid
# operator, options that leave something out, options under which it is dense attention or None
_OPERATORS = (
    (softmax_attention, {}, {}),
    (local_attention, {"radius": 3}, {"radius": _WIDE}),
    (foveated_attention, {"radius": 2, "pool": 2}, {"radius": _WIDE}),
    (neighborhood_attention, {"kernel_size": (1, 3, 3)}, {"kernel_size": (1, _WIDE, _WIDE)}),
    (window_attention, {"window_size": (1, 4, 4)}, {"window_size": (1, _WIDE, _WIDE)}),
    (linear_attention, {}, None),
    (hybrid_attention, {"radius": 2}, {"radius": _WIDE}),
    (agent_attention, {"agents": 6}, None),
)
_CASE = Case(grid=(6, 9), text=5, head_dim=32)
# wrong indices err by tenths; rounding, on every device seen, by less than one of these
_ROUNDINGS = 4
_MISSING = NotImplementedError.__name__


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a tiny call of an implementation on a device gave.

    state: "ok", "cannot run", or "wrong" for what should have run. error: relative root mean
    square, None where nothing came back. reason: why not "ok".
    """

    operator: str
    impl: str
    device: str
    state: str
    error: float | None
    reason: str


def probe(device: str) -> list[Probe]:
    """Every operator by every implementation, and the peers that are installed, on a device."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    case = Case(
        grid=_CASE.grid, text=_CASE.text, head_dim=_CASE.head_dim, dtype=dtype, device=device
    )
    own = [_candidate(case, *row, impl) for row in _OPERATORS for impl in IMPLS]
    bare = Case(grid=case.grid, head_dim=case.head_dim, dtype=dtype, device=device)
    peers = [one for one in peer_candidates(bare, [2]) if find_spec(one.impl) is not None]
    return _probes(case, own, is_own=True) + _probes(bare, peers, is_own=False)


def _candidate(
    case: Case, operator: Callable, narrow: dict, wide: dict | None, impl: str
) -> Candidate:
    is_reference = impl == "reference" and wide is not None
    options = wide if is_reference else narrow
    attend = partial(operator, layout=case.layout, **options)
    exact = F.scaled_dot_product_attention if is_reference else partial(attend, impl="reference")
    return Candidate(
        method=operator.__name__,
        impl=impl,
        needed=case.layout.num_tokens,
        visited=None,
        prepare=lambda q, k, v: Prepared(partial(attend, impl=impl)),
        exact=exact,
    )


def _probes(case: Case, entries: Sequence[Candidate], *, is_own: bool) -> list[Probe]:
    rows, refused = deviations(case, entries, scales=(1.0,), show=False)
    errors = {(row.method, row.impl): row.relative_rms for row in rows}
    reasons = {(one.method, one.impl): one.reason for one in refused}
    limit = _ROUNDINGS * torch.finfo(case.dtype).eps
    found = []
    for entry in entries:
        error = errors.get((entry.method, entry.impl))
        reason = reasons.get((entry.method, entry.impl), "")
        state = CANNOT
        if error is not None:
            # not >, so that NaN is wrong
            state = OK if error <= limit else WRONG
            reason = "" if state == OK else f"relative error {error:.1e}, at most {limit:.1e}"
        elif is_own and not reason.startswith(_MISSING):
            state = WRONG
        found.append(
            Probe(
                operator=entry.method,
                impl=entry.impl,
                device=case.device,
                state=state,
                error=error,
                reason=reason.removeprefix(f"{_MISSING}: ").removeprefix(f"impl={entry.impl!r}: "),
            )
        )
    return found
