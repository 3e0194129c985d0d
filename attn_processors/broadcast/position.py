"""Where a run is, read from the arguments of the model's own forward: no callback, no counting.

The timestep that the model sees is looked up in the scheduler's list. It may be on another scale
(Flux passes t / 1000), rounded (bfloat16), the largest of several (one a token), and repeated:
second-order schedulers list it twice and evaluate two latents, guidance by two forwards passes the
same latent twice, and tiled generation several latents that the list knows nothing of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Place", "Position"]

_TIMESTEP = ("timestep", "timesteps", "t")
_LATENT = ("hidden_states", "sample", "x")
# (offset, factor) to 0 to 1000: Flux and others divide by 1000; some run upwards
_SCALES = ((0.0, 1.0), (0.0, 1000.0), (1000.0, -1.0), (1000.0, -1000.0))


@dataclass(frozen=True, slots=True)
class Place:
    """One forward in a run.

    index: of its evaluation in the schedule.
    is_new: whether it is the first forward of the evaluation.
    is_restart: whether time ran backwards to get here, so that what was kept is of no use.
    """

    index: int
    is_new: bool
    is_restart: bool


class Position:
    """Finds the place of every forward; `begin` starts a run.

    scale: (offset, factor) of the timesteps that the model is given, to those of the schedule; None
        guesses, from the first of a run.
    """

    def __init__(self, scale: tuple[float, float] | None) -> None:
        self._known_scale = scale
        self.begin(())

    def begin(self, timesteps: tuple[float, ...]) -> None:
        self._schedule = timesteps
        self._scale = self._known_scale
        self._index = -1
        self._read: float | None = None
        self._latent: torch.Tensor | None = None
        self._version = 0

    def locate(self, arguments: Mapping[str, Any]) -> Place:
        """The place of the forward with these arguments. Waits for the GPU once."""
        read, slack = _read_timestep(arguments)
        latent = latent_of(arguments)
        is_again = read == self._read
        place = self._again(read, slack, latent) if is_again else self._moved(read, slack)
        self._read, self._index = read, place.index
        self._latent, self._version = latent, _version(latent)
        return place

    def _moved(self, read: float, slack: float) -> Place:
        if self._scale is None:
            self._scale = self._find_scale(read, slack)
        index, distance = self._nearest(_scaled(read, self._scale))
        following = self._following(read, slack)
        if following:
            return Place(self._index + 1, True, False)
        ahead = self._nearest(_scaled(read, self._scale), self._index + 1)
        if ahead[1] <= distance + slack:
            return Place(ahead[0], True, False)
        return Place(index, True, True)

    def _find_scale(self, read: float, slack: float) -> tuple[float, float]:
        """Of the scales on which the schedule has this timestep, the one that puts it earliest.

        A run begins early: 1 is 1000 / 1000 and not the last timestep, which may be 1 too.
        """
        places = [self._nearest(_scaled(read, scale)) for scale in _SCALES]
        close = min(distance for _, distance in places) + max(slack, 0.5)
        fits = [i for i, (_, distance) in enumerate(places) if distance <= close]
        return _SCALES[min(fits, key=lambda i: places[i][0])]

    def _again(self, read: float, slack: float, latent: torch.Tensor) -> Place:
        if not self._is_same(latent) and self._following(read, slack):
            return Place(self._index + 1, True, False)
        return Place(self._index, False, False)

    def _following(self, read: float, slack: float) -> bool:
        """Whether the schedule goes on with this timestep."""
        if self._index < 0 or self._index + 1 >= len(self._schedule):
            return False
        value = _scaled(read, self._scale)
        distance = abs(self._schedule[self._index + 1] - value)
        return distance <= self._nearest(value)[1] + slack

    def _nearest(self, value: float, start: int = 0) -> tuple[int, float]:
        """The first index from `start` on with the least distance to `value`, and the distance."""
        distances = [abs(t - value) for t in self._schedule[start:]]
        least = min(distances, default=float("inf"))
        return (start + distances.index(least) if distances else -1), least

    def _is_same(self, latent: torch.Tensor) -> bool:
        """Whether this latent is the last one, or a part of its batch, or the other way round."""
        last = self._latent
        if _version(last) != self._version:
            return False  # changed in place since
        if latent is last:
            return True
        if latent.shape[1:] != last.shape[1:] or latent.device != last.device:
            return False
        rows = min(len(latent), len(last))
        return torch.equal(latent[:rows].to(last.dtype), last[:rows])

    def __getstate__(self) -> dict[str, Any]:
        return {"_known_scale": self._known_scale, "_schedule": self._schedule}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._known_scale = state["_known_scale"]
        self.begin(state["_schedule"])


def _scaled(read: float, scale: tuple[float, float]) -> float:
    offset, factor = scale
    return offset + factor * read


def latent_of(arguments: Mapping[str, Any]) -> torch.Tensor:
    """The picture or video that the model is given."""
    found = (arguments[name] for name in _LATENT if arguments.get(name) is not None)
    latent = next(found, None)
    if isinstance(latent, (list, tuple)) and latent:
        latent = latent[0]
    if not isinstance(latent, torch.Tensor):
        raise NotImplementedError(
            f"no latent among the arguments of forward ({', '.join(arguments)}); "
            f"looked for {', '.join(_LATENT)}"
        )
    return latent


def _read_timestep(arguments: Mapping[str, Any]) -> tuple[float, float]:
    """The timestep, and how far its rounding may have moved it, on the scale 0 to 1000."""
    value = next((arguments[name] for name in _TIMESTEP if arguments.get(name) is not None), None)
    if value is None:
        raise NotImplementedError(
            f"no timestep among the arguments of forward ({', '.join(arguments)}); "
            f"looked for {', '.join(_TIMESTEP)}"
        )
    value = torch.as_tensor(value).detach()
    is_rounded = value.is_floating_point() and value.element_size() < 4
    slack = 1000 * torch.finfo(value.dtype).eps / 2 if is_rounded else 1e-3
    return float(value.max()), slack


def _version(tensor: torch.Tensor) -> int:
    # tensors made in inference mode do not count their changes
    return 0 if tensor.is_inference() else tensor._version
