"""Something that can be measured: an implementation of attention over a grid, and its oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...kernels import softmax_attention

__all__ = ["REFUSALS", "Candidate", "Prepared", "Refused", "exact_dense", "reason_of"]

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Rearrange = Callable[[torch.Tensor], torch.Tensor]

# other people's libraries and compilers refuse in ways of their own: each is told, none ends a run
REFUSALS = (Exception,)


class Prepared(NamedTuple):
    """`attend` on q, k, v that `arrange` brought from [B, H, N, D] into its order.

    `restore` brings the result back. Seconds: of the mask, compiled already, and of everything
    that is compiled and built before the first result.
    """

    attend: Attend
    arrange: Rearrange = lambda x: x
    restore: Rearrange = lambda x: x
    mask_seconds: float | None = None
    preparation_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A method, who runs it, and how.

    needed, visited: keys that a grid query may see and that it is compared with, means; visited is
    None where the implementation does not tell. `prepare` gets q, k, v of the shape to come and may
    raise one of REFUSALS. `exact` is the same attention, dense, in the type of its inputs. `plain`
    is the same in plain PyTorch, for one whose error dense attention's says nothing of.
    """

    method: str
    impl: str
    needed: float
    visited: float | None
    prepare: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Prepared]
    exact: Attend
    plain: Attend | None = None

    @property
    def name(self) -> str:
        """Unique among the candidates of a case."""
        return f"{self.method} ({self.impl})"


class Refused(NamedTuple):
    """A candidate that did not run at a grid, and why."""

    method: str
    impl: str
    grid: str
    reason: str


def exact_dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The oracle of dense attention."""
    return softmax_attention(q, k, v, impl="reference")


def reason_of(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    return f"{kind}: {lines[0][:160]}" if lines else kind
