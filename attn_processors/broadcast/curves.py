"""What calibration measured: how far a layer's output moves between evaluations, and what it costs.

Everything is over the evaluations of one schedule. On another schedule the curves are read between
its timesteps: reuse by the distance in time to the output that is reused, forecasts by the
curvature that they miss, weights on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MAX_LAG", "Curves", "rounded"]

MAX_LAG = 4  # evaluations in a row that do not compute


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Arrays by layer, in the order of `layers`; L layers, n evaluations, G = MAX_LAG.

    layers: {layer: kind}.
    reuse: [L, n, G], relative error at evaluation j of the output of j - g, g = 1..G.
    forecast: [L, n, G, G + 1], the same of the forecast from j - g and j - g - h, h = 1..G + 1.
    weight, forecast_weight: {kind: [n]}, squared error of the final latent for a unit of squared
        relative error, of reuse and of forecasts.
    seconds: [L], of one call of the layer.
    num_bytes: [L], of one output in its own precision.
    forward_seconds: of one forward of the model.
    Where an evaluation has no such predecessor, the error is infinite: at the beginning, and where
    a second denoiser takes over.
    """

    timesteps: tuple[float, ...]
    layers: Mapping[str, str]
    reuse: np.ndarray
    forecast: np.ndarray
    weight: Mapping[str, np.ndarray]
    forecast_weight: Mapping[str, np.ndarray]
    seconds: np.ndarray
    num_bytes: np.ndarray
    forward_seconds: float

    def __post_init__(self) -> None:
        layers, n = len(self.layers), len(self.timesteps)
        shapes = {
            "reuse": (layers, n, MAX_LAG),
            "forecast": (layers, n, MAX_LAG, MAX_LAG + 1),
            "seconds": (layers,),
            "num_bytes": (layers,),
        }
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"{name} must be {list(shape)} for {layers} layers and {n} evaluations, got "
                    f"{list(np.shape(getattr(self, name)))}"
                )
        for weights in (self.weight, self.forecast_weight):
            if {len(weight) for weight in weights.values()} != {n}:
                raise ValueError(f"weights must have {n} values, one for each evaluation")
            if set(weights) != set(self.kinds):
                raise ValueError(f"weights must be of {sorted(self.kinds)}")

    @property
    def kinds(self) -> list[str]:
        """Of the layers, each once."""
        return list(dict.fromkeys(self.layers.values()))

    @property
    def share_of_time(self) -> float:
        """Time of the attention layers over that of the model."""
        return float(self.seconds.sum() / self.forward_seconds)

    def are_of(self, timesteps: Sequence[float]) -> bool:
        """Whether these are the timesteps of the schedule measured."""
        own = self.timesteps
        return len(timesteps) == len(own) and np.allclose(timesteps, own, atol=0.5)

    def at(self, timesteps: Sequence[float]) -> Curves:
        """The curves of another schedule; these, if it is the same."""
        if self.are_of(timesteps):
            return self
        new = tuple(map(float, timesteps))
        times = np.asarray(new)
        weight, forecast_weight = (
            {kind: np.exp(_between(self.timesteps, np.log(w), times)) for kind, w in own.items()}
            for own in (self.weight, self.forecast_weight)
        )
        return Curves(
            timesteps=new,
            layers=self.layers,
            reuse=self._reuse_at(times),
            forecast=self._forecast_at(times),
            weight=weight,
            forecast_weight=forecast_weight,
            seconds=self.seconds,
            num_bytes=self.num_bytes,
            forward_seconds=self.forward_seconds,
        )

    def _reuse_at(self, times: np.ndarray) -> np.ndarray:
        """Errors grow with the distance in time, linearly between those measured."""
        own = np.asarray(self.timesteps)
        new = np.full((len(self.layers), len(times), MAX_LAG), np.inf)
        distances, known = _lags(own), np.isfinite(self.reuse[0])
        source, denoiser = _nearest(known.any(1)), self._denoiser_at(times)
        for lag in range(1, min(MAX_LAG, len(times) - 1) + 1):
            asked = _spaced(times, lag)  # [n - lag]
            by_own = np.zeros((len(self.layers), len(own), len(asked)))
            for j in np.unique(source):
                x = np.concatenate(([0], distances[j, known[j]]))
                for layer, values in enumerate(self.reuse[:, j]):
                    by_own[layer, j] = _line(x, np.concatenate(([0], values[known[j]])), asked)
            by_own = by_own[:, source]
            for place, t in enumerate(times[lag:]):
                new[:, lag + place, lag - 1] = _between(self.timesteps, by_own[..., place], t)
            new[:, lag:, lag - 1][:, denoiser[lag:] != denoiser[:-lag]] = np.inf
        return new

    def _forecast_at(self, times: np.ndarray) -> np.ndarray:
        """A forecast over a from outputs b apart misses the curvature times a (a + b)."""
        own = np.asarray(self.timesteps)
        missed = _product(own)  # [n, G, G + 1]
        finite = np.isfinite(self.forecast) & (missed > 0)
        ratio = np.divide(self.forecast, missed, out=np.zeros_like(self.forecast), where=finite)
        count = finite.sum((2, 3))
        curvature = ratio.sum((2, 3)) / np.maximum(count, 1)
        curvature = curvature[:, _nearest(count[0] > 0)]
        at_new = _between(self.timesteps, curvature, times)  # [L, m]
        product, denoiser = _product(times), self._denoiser_at(times)
        for lag, gap in np.ndindex(product.shape[1:]):
            back = lag + gap + 2
            product[back:, lag, gap][denoiser[back:] != denoiser[:-back]] = 0
        return np.where(product > 0, at_new[..., None, None] * product, np.inf)

    def _denoiser_at(self, times: np.ndarray) -> np.ndarray:
        """[m]: which denoiser runs at these times, by number.

        One is taken to follow another halfway between the evaluations measured. What is read one
        evaluation too early is not there, and the layer computes.
        """
        own = np.asarray(self.timesteps)
        starts = 1 + np.flatnonzero(np.isinf(self.reuse[0, 1:, 0]))
        handovers = (own[starts - 1] + own[starts]) / 2
        return (times[:, None] > handovers).sum(1)


def rounded(value: np.ndarray) -> np.ndarray:
    """Four significant digits, so that what is written to a file is what was used."""
    flat = [float(f"{x:.4g}") for x in np.ravel(value)]
    return np.array(flat).reshape(np.shape(value))


def _nearest(usable: np.ndarray) -> np.ndarray:
    """[n]: the nearest evaluation that is usable, the earlier of two."""
    own = np.flatnonzero(usable)
    return own[np.abs(own - np.arange(len(usable))[:, None]).argmin(1)]


def _lags(times: np.ndarray) -> np.ndarray:
    """[n, G]: distance in time to the evaluation g before; 0 where there is none."""
    found = np.zeros((len(times), MAX_LAG))
    for lag in range(1, min(MAX_LAG, len(times) - 1) + 1):
        found[lag:, lag - 1] = _spaced(times, lag)
    return found


def _spaced(times: np.ndarray, lag: int) -> np.ndarray:
    """Distance of every evaluation to the one `lag` before; a repeated timestep counts for half."""
    typical = np.median(np.abs(np.diff(times)))
    return np.maximum(np.abs(times[lag:] - times[:-lag]), typical / 2)


def _product(times: np.ndarray) -> np.ndarray:
    """[n, G, G + 1]: a (a + b) of a forecast over g from outputs h apart; 0 where there is none."""
    found = np.zeros((len(times), MAX_LAG, MAX_LAG + 1))
    for lag in range(1, MAX_LAG + 1):
        for gap in range(1, MAX_LAG + 2):
            start = lag + gap
            if start >= len(times):
                continue
            last = times[gap : len(times) - lag]
            ahead, behind = np.abs(times[start:] - last), np.abs(last - times[: len(last)])
            found[start:, lag - 1, gap - 1] = np.where(behind > 0, ahead * (ahead + behind), 0)
    return found


def _line(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear interpolation, going on beyond the last point as a line through the origin."""
    inside = np.interp(at, x, y)
    return np.where(at > x[-1], y[-1] * at / x[-1], inside)


def _between(timesteps: Sequence[float], values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`values` [..., n] over timesteps, read at other timesteps; constant beyond the ends."""
    order = np.argsort(timesteps)
    x, y = np.asarray(timesteps)[order], np.asarray(values)[..., order]
    flat = [np.interp(at, x, row) for row in y.reshape(-1, len(x))]
    return np.asarray(flat).reshape(*y.shape[:-1], *np.shape(at))
