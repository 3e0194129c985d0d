"""How much each pixel attends to each phrase, summed over the layers and steps of a sampling.

The mass of a phrase is attention to values that are 1 at its tokens and 0 elsewhere, so one more
call of what the layer runs gives it in pixels x phrases memory. Heads are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..kernels import TokenLayout
from ..kernels.map_store import MapStore
from ..kernels.schedule import check_fractions, is_within
from .call import AttentionCall
from .steps import Steps

__all__ = ["Attend", "MapReader", "PhraseSettings", "heat"]

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# from nothing over red to yellow
_RAMP = ((0.10, 0.08, 0.24), (0.90, 0.24, 0.12), (1.0, 0.94, 0.43))


@dataclass(frozen=True, kw_only=True, slots=True)
class PhraseSettings:
    """The options of one node.

    places: {phrase: its tokens in the conditioning}. length: tokens of the conditioning.
    start_percent, end_percent: part of this sampling's steps that is read.
    """

    places: Mapping[str, tuple[int, ...]]
    length: int
    start_percent: float
    end_percent: float

    def __post_init__(self) -> None:
        check_fractions("start_percent, end_percent", (self.start_percent, self.end_percent))

    def __str__(self) -> str:
        part = f"{self.start_percent:.0%} to {self.end_percent:.0%} of the steps"
        return f"maps of {', '.join(map(repr, self.places))}, {part}"


class MapReader:
    """The maps of one sampling."""

    def __init__(self, settings: PhraseSettings) -> None:
        self.settings = settings
        self.store = MapStore(tuple(settings.places))
        self.reasons: dict[str, None] = {}

    def begin(self) -> None:
        """Forget the sampling before."""
        self.store.clear()
        self.reasons.clear()

    def rows(self, options: Mapping[str, Any], batch: int, steps: Steps | None) -> list[int] | None:
        """Rows of the batch that are of the positive prompt; None where nothing is read now."""
        which = options.get("cond_or_uncond")
        window = (self.settings.start_percent, self.settings.end_percent)
        if which is None or steps is None:
            self.reasons["ComfyUI does not tell the steps or the prompts here"] = None
            return None
        if not is_within(steps.progress, window):
            return None
        size = batch // len(which)
        return [i * size + j for i, one in enumerate(which) if one == 0 for j in range(size)]

    def read(
        self, call: AttentionCall, layout: TokenLayout, rows: list[int], progress: float,
        attend: Attend,
    ) -> None:  # fmt: skip
        """Add the maps of one call; `attend` is what the layer runs."""
        text = call.k.shape[2] if call.is_cross else layout.text
        if text == 0 or not rows:
            return
        length = self.settings.length
        # ComfyUI repeats a prompt that shares its forward with a longer one
        repeats = text // length if call.is_cross else 1
        if text != repeats * length:
            reason = f"the text has {length} tokens, but the forward's prompt {text}"
            self.reasons[reason] = None
            return
        columns = self._columns(call.k.shape[2], repeats).to(call.q.device)
        q, k = (x[rows] for x in call.wide()[:2])
        masses = [_mass(q, k, some, attend) for some in columns.split(q.shape[-1], 1)]
        maps = torch.cat(masses, -1)[:, layout.grid_slice]  # [b, f*h*w, C]
        planes = maps.unflatten(1, layout.grid).mean(1)  # [b, h, w, C]
        self.store.add(progress, planes.permute(0, 3, 1, 2).float().cpu())

    def _columns(self, keys: int, repeats: int) -> torch.Tensor:
        """[keys, phrases], 1 at the tokens of each."""
        columns = torch.zeros(keys, len(self.settings.places))
        for i, places in enumerate(self.settings.places.values()):
            for repeat in range(repeats):
                columns[[place + repeat * self.settings.length for place in places], i] = 1
        return columns

    def maps(self, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Phrase -> mean over layers and steps [b, *size]; ValueError where nothing was read."""
        if not self.store.steps:
            why = "; ".join(self.reasons) or "nothing was sampled with this model yet"
            raise ValueError(f"no attention map was read: {why}")
        return self.store.maps(size)

    def lines(self) -> list[str]:
        """What the report says."""
        return [
            f"{self.settings}: {len(self.store.steps)} steps read",
            *(f"not read: {reason}" for reason in self.reasons),
        ]


def _mass(q: torch.Tensor, k: torch.Tensor, columns: torch.Tensor, attend: Attend) -> torch.Tensor:
    """Mean over heads of the attention to columns [M, C], [B, N, C]."""
    values = F.pad(columns, (0, q.shape[-1] - columns.shape[1])).to(k).expand_as(k)
    return attend(q, k, values.contiguous())[..., : columns.shape[1]].mean(1)


def heat(picture: torch.Tensor, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """P maps [b, h, w] over picture [B, h, w, 3]: pictures [P * B, h, w, 3], masks [P * B, h, w].

    A phrase's largest value is the brightest, over the batch; b is B, or 1 for all. Raises
    ValueError for other batches.
    """
    if any(len(one) not in (1, len(picture)) for one in maps):
        raise ValueError(
            f"{len(picture)} pictures, but maps of {len(maps[0])}: connect the pictures of the "
            "sampling that the model was read in"
        )
    levels = [one / one.max().clamp_min(1e-12) for one in maps]
    masks = torch.cat([level.expand(len(picture), -1, -1) for level in levels]).to(picture)
    gray = picture[..., :3].mean(-1, keepdim=True).repeat(len(maps), 1, 1, 1)
    cold, warm, hot = (masks.new_tensor(colour) for colour in _RAMP)
    low, high = ((2 * masks - shift).clamp(0, 1)[..., None] for shift in (0, 1))
    colour = (cold * (1 - low) + warm * low) * (1 - high) + hot * high
    return 0.75 * colour + 0.25 * gray, masks
