"""Where a modulation acts: layers, part of the schedule, heads, rows of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...kernels.schedule import check_window, is_within
from ..hosts import check_pattern, matches

__all__ = ["Scope"]

_BRANCHES = ("cond", "uncond", "both")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Conditions that must all hold.

    layers: patterns of layer names; None is every layer of the right kind.
    stride: of the layers that match, every n-th, beginning with the first.
    steps: window (start, end) in fractions of the schedule; step i of n lies at i / n.
    heads: their indices; None is all.
    branch: rows of the batch: "cond" are those made from the prompt, "uncond" all others.
    """

    layers: tuple[str, ...] | None = None
    stride: int = 1
    steps: tuple[float, float] = (0.0, 1.0)
    heads: tuple[int, ...] | None = None
    branch: str = "cond"

    def narrowed(
        self,
        *,
        layers: str | Sequence[str] | None = None,
        stride: int | None = None,
        steps: tuple[float, float] | None = None,
        heads: Sequence[int] | None = None,
        branch: str | None = None,
    ) -> Scope:
        """This scope with the given conditions in the place of its own."""
        given = {
            "layers": (layers,) if isinstance(layers, str) else _listed("layers", layers),
            "stride": stride,
            "steps": _listed("steps", steps),
            "heads": _listed("heads", heads),
            "branch": branch,
        }
        new = replace(self, **{name: value for name, value in given.items() if value is not None})
        new._check()
        return new

    def _check(self) -> None:
        check_window(self.steps)
        if not isinstance(self.stride, int) or self.stride < 1:
            raise ValueError(f"stride must be an integer >= 1, got {self.stride!r}")
        if self.branch not in _BRANCHES:
            raise ValueError(f"branch must be {', '.join(_BRANCHES)}, got {self.branch!r}")
        if self.heads is not None and not (self.heads and all(_is_index(h) for h in self.heads)):
            raise ValueError(f"heads must be one or more indices >= 0, got {self.heads!r}")

    def choose(self, kinds: Mapping[str, str], targets: Sequence[str], where: str) -> list[str]:
        """The layers among `targets`; ValueError for a pattern that matches none of them."""
        for pattern in self.layers or ():
            check_pattern(pattern, kinds, targets, where)
        wanted = [
            name
            for name in targets
            if self.layers is None or any(matches(name, pattern) for pattern in self.layers)
        ]
        return wanted[:: self.stride]

    def is_now(self, progress: float) -> bool:
        """Whether a forward at this fraction of the schedule lies in the window."""
        return is_within(progress, self.steps)


def _listed(name: str, values: object) -> tuple | None:
    if values is not None and not isinstance(values, Iterable):
        expected = "(start, end)" if name == "steps" else "a list"
        raise ValueError(f"{name} must be {expected}, got {values!r}")
    return None if values is None else tuple(values)


def _is_index(head: object) -> bool:
    return isinstance(head, int) and head >= 0
