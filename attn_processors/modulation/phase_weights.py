"""PhaseWeights: nouns first, then attributes, then nothing: weights that follow the schedule.

The dynamic weights of attribution focusing (arXiv:2404.13899): early steps settle which objects
there are, middle ones what they look like. A'_ij = w_j A_ij / sum_j w_j A_ij, which is the bias
log w_j. The paper's weights and phases are not public; those here are this project's.
"""

from __future__ import annotations

import math

import torch

from .base import Modulation
from .plan import Plan, key_bias
from .scene import Scene
from .site import Site

__all__ = ["PhaseWeights"]


class PhaseWeights(Modulation):
    """Weigh the nouns and the attributes of every phrase by phase.

    noun, attribute: factors > 0 of early, middle and late steps. The noun of a phrase is what the
        scene says; the attributes are its other words.
    ends: where the early and the middle steps end, in fractions of the schedule.
    """

    edits = frozenset({"key bias"})

    def __init__(
        self,
        scene: Scene,
        *,
        noun: tuple[float, float, float] = (1.5, 1.0, 1.0),
        attribute: tuple[float, float, float] = (1.0, 1.5, 1.0),
        ends: tuple[float, float] = (0.3, 0.7),
    ) -> None:
        super().__init__(scene)
        for name, factors in (("noun", noun), ("attribute", attribute)):
            if len(factors) != 3 or not all(0 < f < math.inf for f in factors):
                raise ValueError(f"{name} must be three factors > 0, got {factors!r}")
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1:
            raise ValueError(
                f"ends must be (early, middle) with 0 <= early <= middle, got {ends!r}"
            )
        self.noun = tuple(noun)
        self.attribute = tuple(attribute)
        self.ends = tuple(ends)

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        phase = sum(site.progress >= end for end in self.ends)
        noun, attribute = math.log(self.noun[phase]), math.log(self.attribute[phase])
        if noun == attribute == 0:
            return None
        tokens = site.tokens[self.scene]
        bias = torch.zeros(site.num_keys, dtype=site.dtype, device=site.device)
        for name in self.scene.phrases:
            bias[site.marked(tokens.phrases[name])] = attribute
        for name in self.scene.phrases:
            bias[site.marked(tokens.nouns[name])] = noun
        return Plan(grouped=key_bias(bias, q.shape[2]))
