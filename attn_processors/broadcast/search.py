"""The cheapest rows for an allowed number of computed calls, by dynamic programming.

Layers of one kind share a row: an output that is computed from others that are stale is worth less
than the errors of single layers say. On `shapes-flux` one row was 2, 3 and 11 dB better than a row
for each layer, at 60, 48 and 40 % of the calls, and compiled models see fewer patterns.

A row is a path over its computed evaluations. Between two of them every evaluation errs by the
better of reuse and forecast, which depends on the last two computed ones. What is stale errs in the
same direction for as long as it is: the errors of one stretch add up, weighed, before they are
squared, and those of different stretches and kinds after it. Computing costs a price, the same for
all calls, so that they go where they save most; the price is found by bisection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...kernels.broadcast import COMPUTE, FORECAST, REUSE, TAIL
from .curves import MAX_LAG, Curves

__all__ = ["Found", "search", "share_of"]

_GAPS = MAX_LAG + 1  # between computed evaluations: 1..G + 1
_PRICES = 1e-24, 1e12  # squared errors of a latent lie far inside
_PRECISION = 1.001


class Found(NamedTuple):
    """rows: {layer: row}; share: of the calls or the cost; error: predicted, of the latent.

    Rows that were tried out have no predicted error: nan.
    """

    rows: dict[str, str]
    share: float
    error: float


def search(
    curves: Curves,
    share: float,
    *,
    use_cost: bool = False,
    use_forecast: bool = True,
    is_strict: bool = True,
) -> Found:
    """Rows whose computed calls are at most `share` of all, weighed by seconds with `use_cost`.

    Where no rows compute so little: ValueError, or the least there is unless `is_strict`.
    """
    kinds = curves.kinds
    places = [[i for i, k in enumerate(curves.layers.values()) if k == kind] for kind in kinds]
    each = _prices(curves, use_cost)
    prices = np.array([each[own].sum() for own in places]) / each.sum()
    of_kinds = [
        _best(curves, kind, own, use_forecast) for kind, own in zip(kinds, places, strict=True)
    ]
    segments = _segments(np.stack([errors for errors, _ in of_kinds]))
    price = _lowest_price(segments, prices, share, is_strict)
    computed, total = _paths(segments, price * prices)
    total = total - price * (computed * prices[:, None]).sum(1)
    rows = {k: _row(of_kinds[i][1], computed[i]) for i, k in enumerate(kinds)}
    by_layer = {layer: rows[kind] for layer, kind in curves.layers.items()}
    return Found(by_layer, _share(computed, prices), float(total.sum()))


def share_of(rows: Mapping[str, str], curves: Curves, *, use_cost: bool = False) -> float:
    """The share of the calls, or of their cost, that rows {layer: row} of all layers compute."""
    each = _prices(curves, use_cost)
    computed = [rows[layer].count(COMPUTE) for layer in curves.layers]
    return float(np.dot(computed, each) / each.sum() / len(curves.timesteps))


def _prices(curves: Curves, use_cost: bool) -> np.ndarray:
    """[L]: what a call of each layer counts for, seconds or one."""
    return curves.seconds if use_cost else np.ones(len(curves.layers))


def _lowest_price(segments: np.ndarray, prices: np.ndarray, share: float, is_strict: bool) -> float:
    """The price of a call at which at most `share` of them compute."""

    def computes(price: float) -> float:
        return _share(_paths(segments, price * prices)[0], prices)

    low, high = _PRICES
    least = computes(high)
    if least > share and not is_strict:
        return high
    if least > share:
        raise ValueError(
            f"a share of {share:.3g} is too small: the first and the last {TAIL} evaluations "
            f"compute, and every {_GAPS}th at least; the least here is {least:.3g}"
        )
    if computes(0.0) <= share:
        return 0.0
    while high / low > _PRECISION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if computes(middle) <= share else (middle, high)
    return high


def _best(
    curves: Curves, kind: str, layers: list[int], use_forecast: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weighed error [n, G, G + 1] of a kind by lag and last gap, and whether it is a forecast's."""
    reuse = _weighed(curves.reuse[layers], curves.weight[kind])
    forecast = _weighed(curves.forecast[layers], curves.forecast_weight[kind])
    reuse = np.repeat(reuse[..., None], _GAPS, -1)
    is_forecast = (forecast < reuse) & use_forecast
    return np.where(is_forecast, forecast, reuse), is_forecast


def _weighed(errors: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Errors [layers, n, ...] of all layers as one, [n, ...]."""
    whole = np.sqrt((errors**2).sum(0))
    return np.sqrt(weight).reshape(-1, *[1] * (whole.ndim - 1)) * whole


def _segments(errors: np.ndarray) -> np.ndarray:
    """[K, n, G + 1 (last gap), G + 1 (next gap)]: squared error from evaluation i to the next."""
    kinds, n = errors.shape[:2]
    found = np.full((kinds, n, _GAPS, _GAPS), np.inf)
    for i in range(n):
        total = np.zeros((kinds, _GAPS))
        found[:, i, :, 0] = total
        for gap in range(2, min(_GAPS, n - 1 - i) + 1):
            total = total + errors[:, i + gap - 1, gap - 2]
            found[:, i, :, gap - 1] = total**2
    return found


def _paths(segments: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which evaluations compute [K, n] at these prices [K], and the least total [K]."""
    kinds, n = segments.shape[:2]
    best = np.full((kinds, n, _GAPS), np.inf)  # by evaluation and the gap before it
    came = np.zeros((kinds, n, _GAPS), dtype=np.int64)  # the gap before that
    best[:, 0] = prices[:, None]
    forced = n - TAIL  # computes, as does what follows
    for i in range(n - 1):
        for gap in range(1, _GAPS + 1):
            j = i + gap
            if j >= n or i < forced < j:
                continue
            through = best[:, i] + segments[:, i, :, gap - 1] + prices[:, None]
            came[:, j, gap - 1] = through.argmin(1)
            best[:, j, gap - 1] = through.min(1)
    return _walk_back(best, came)


def _walk_back(best: np.ndarray, came: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kinds, n = best.shape[:2]
    computed = np.zeros((kinds, n), dtype=bool)
    for kind in range(kinds):
        i, gap = n - 1, int(best[kind, -1].argmin())
        while i > 0:
            computed[kind, i] = True
            i, gap = i - (gap + 1), came[kind, i, gap]
    computed[:, 0] = True
    return computed, best[:, -1].min(1)


def _share(computed: np.ndarray, prices: np.ndarray) -> float:
    return float((computed.mean(1) * prices).sum())


def _row(is_forecast: np.ndarray, computed: np.ndarray) -> str:
    """Letters of one kind; is_forecast is [n, G, G + 1] by lag and last gap."""
    row, last, gap = [], 0, 1
    for i, computes in enumerate(computed):
        if computes:
            gap = max(i - last, 1) if i else 1
            last = i
            row.append(COMPUTE)
        else:
            row.append(FORECAST if is_forecast[i, i - last - 1, gap - 1] else REUSE)
    return "".join(row)
