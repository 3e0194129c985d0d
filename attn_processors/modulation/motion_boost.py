"""MotionBoost: more motion and steadier objects in videos, from the attention over frames alone.

BroadWay, later named ByTheWay (arXiv:2410.06241), for AnimateDiff and its kind. A is the attention
over frames of one pixel and head, U that of the first decoder block with attention to text,
interpolated to the grid of the layer:

    self-guidance   A <- (1 - alpha) A + alpha U
    enhancement     the high frequencies of every row of A, times beta'
    beta' = max(beta, sqrt((E1 - E2_low) / E2_high))

E1 and E2 are the mean energies sum_j A_ij^2 before and after self-guidance, so enhancement gives at
least what self-guidance took. The frequencies k of F frames with |k - F/2| <= tau are high. They
are a symmetric circulant projection P of the keys, so that A' v = A (v + (beta' - 1) P v) and no
weight is ever transformed. Here the energies are those of each video by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F

from .base import Modulation
from .plan import Blend, Plan
from .site import Site

__all__ = ["MotionBoost"]


class MotionBoost(Modulation):
    """Scale the high frequencies of the attention over frames, and blend it with an early block's.

    alpha: weight of the early block's attention, 0..1; steadier objects.
    beta: least factor of the high frequencies, >= 1; more motion.
    tau: half width of the high band, in frequencies; all but the mean when F is 2 tau + 2.

    Acts on all rows of the batch, in the decoder blocks with attention to text, in the first 20 %
    of the schedule; the defaults are those of the paper for AnimateDiff with 16 frames.
    """

    kinds = frozenset({"temporal"})
    edits = frozenset({"frame weights"})

    def __init__(self, alpha: float = 0.6, beta: float = 1.5, tau: int = 7) -> None:
        super().__init__(branch="both")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in 0..1, got {alpha!r}")
        if not 1 <= beta < math.inf:
            raise ValueError(f"beta must be a number >= 1, got {beta!r}")
        if not isinstance(tau, int) or tau < 0:
            raise ValueError(f"tau must be an integer >= 0, got {tau!r}")
        self.alpha, self.beta, self.tau = float(alpha), float(beta), tau
        self.scope = replace(self.scope, steps=(0.0, 0.2))

    def targets(self, kinds: Mapping[str, str]) -> list[str]:
        """Temporal layers of the decoder blocks that also attend to text."""
        reading = {_block(name) for name, kind in kinds.items() if kind == "cross"}
        decoders = {block for block in reading if block.startswith("up_blocks.")}
        return [name for name in super().targets(kinds) if _block(name) in decoders]

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        if self.alpha == 0 and self.beta == 1:
            return None
        num_frames = q.shape[2]
        if 2 * self.tau >= num_frames:
            raise ValueError(
                f"MotionBoost with tau={self.tau} needs more than {2 * self.tau} frames, "
                f"got {num_frames}; give it tau={(num_frames - 1) // 2} or less"
            )
        own = ((q * site.scale) @ k.mT).softmax(-1)  # [b*h*w, H, F, F]
        high = high_band(num_frames, self.tau).to(own)  # under autocast not of the site's dtype
        early = self._early(site, own)
        mixed = own if early is None else torch.lerp(own, early, self.alpha)
        factor = self._factor(site, own, mixed, high)  # [b]
        gain = (factor - 1).repeat_interleave(math.prod(site.grid)).view(-1, 1, 1, 1)
        return Plan(
            value_map=lambda v: v + gain.to(v) * (high.to(v) @ v),
            blend=None if early is None else Blend(early, self.alpha),
        )

    def _early(self, site: Site, own: torch.Tensor) -> torch.Tensor | None:
        """The early block's weights on this layer's grid; None in that block itself."""
        if self.alpha == 0:
            return None
        block = _block(site.layer)
        place = site.layer.removeprefix(block)
        first = site.kept.setdefault(self, block)
        if first == block:
            site.kept[self, place] = own, site.grid
            return None
        if (self, place) not in site.kept:
            raise ValueError(
                f"MotionBoost: {first} has no {place[1:]} for {block} to follow; "
                "name the layers with where(layers=...)"
            )
        return resized(*site.kept[self, place], site.grid)

    def _factor(
        self, site: Site, own: torch.Tensor, mixed: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        """beta' of every video."""
        energy = functools.partial(mean_energy, num_pixels=math.prod(site.grid))
        raised = energy(mixed @ high)
        lacking = energy(own) - (energy(mixed) - raised)
        ratio = (lacking / raised).clamp_min(0).sqrt()
        # weights without high frequencies have nothing to raise
        return torch.where(raised > 0, ratio, 1).clamp_min(self.beta)


def high_band(num_frames: int, tau: int) -> torch.Tensor:
    """The projection [F, F], float64, on the frequencies k with |k - F/2| <= tau."""
    index = torch.arange(num_frames, dtype=torch.float64)
    band = index[(index - num_frames / 2).abs() <= tau]
    apart = index[:, None] - index
    return (2 * math.pi / num_frames * band[:, None, None] * apart).cos().sum(0) / num_frames


def mean_energy(weights: torch.Tensor, num_pixels: int) -> torch.Tensor:
    """Mean over pixels, heads and frames of the squared row norms of [b*h*w, H, F, F], as [b]."""
    energy = weights.to(torch.promote_types(weights.dtype, torch.float32)).square().sum(-1)
    return energy.unflatten(0, (-1, num_pixels)).mean((1, 2, 3))


def resized(weights: torch.Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> torch.Tensor:
    """Weights [b*h*w, H, F, F] interpolated bilinearly over the pixels to another grid."""
    if grid == wanted:
        return weights
    planes = weights.unflatten(0, (-1, *grid)).flatten(3).movedim(3, 1)  # [b, H*F*F, h, w]
    planes = F.interpolate(planes, size=wanted, mode="bilinear")
    return planes.movedim(1, 3).unflatten(3, weights.shape[1:]).flatten(0, 2)


def _block(layer: str) -> str:
    """Such as "up_blocks.1"; the middle block, which is one, by its name."""
    head, index, *_ = [*layer.split("."), ""]
    return f"{head}.{index}" if index.isdecimal() else head
