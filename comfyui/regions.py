"""A prompt for each region of the picture, in one forward.

The prompts lie one behind the other in the conditioning, and with them travels how long each is and
where it belongs. A pixel p has weights w_r(p) of its prompts that sum to 1: the coverage by each
region, divided by their sum where that is more than 1; the base prompt has what is left. In cross-
attention they weigh the outputs of one softmax for each prompt. In joint layers, where text and
picture share one softmax, log w_r(p) is added to the logits between p and the prompt r, in both
directions, and prompts do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..kernels import TokenLayout, merge
from ..kernels.coverage import coverage
from ..kernels.partial import partial_attention

__all__ = ["RegionCond", "RegionPrompts", "add_region", "couple", "couple_joint", "find_prompts"]

KEY = "foveate_regions"

_EXCLUDED = {
    "attention_mask": "its text encoder hides tokens, which joined prompts cannot say",
    "area": "remove Conditioning (Set Area)",
    "mask": "remove Conditioning (Set Mask) and give the mask to this node",
}

# one entry of a conditioning: the embedding [1, T, C] and what goes with it
Entry = tuple[torch.Tensor, dict]
# out and lse of image queries to all image keys
OverGrid = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class RegionPrompts:
    """lengths: tokens of the base prompt, then of the regions'. masks: [h, w] in 0..1, of these."""

    lengths: tuple[int, ...]
    masks: tuple[torch.Tensor, ...]
    _weights: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"the {' + '.join(map(str, self.lengths))} of the base prompt and its regions"

    @property
    def dtype(self) -> torch.dtype:
        """ComfyUI asks for it where the sampled model has no Foveate Regions to take it out."""
        raise ValueError(
            "the conditioning has regions, but the model that is sampled does not know them: "
            "connect the model that Foveate Regions gives"
        )

    @property
    def segments(self) -> list[slice]:
        """Where each prompt lies in the conditioning."""
        ends = [sum(self.lengths[: i + 1]) for i in range(len(self.lengths))]
        return [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]

    def weights(self, layout: TokenLayout) -> torch.Tensor:
        """Weight of each prompt at each grid token, [1 + regions, f*h*w]; they sum to 1."""
        frames, *size = layout.grid
        key = tuple(size)
        if key not in self._weights:
            cover = torch.stack([coverage(mask, *size) for mask in self.masks]).flatten(1)
            total = cover.sum(0)
            free = (1 - total).clamp_min(0)
            self._weights[key] = torch.cat([free[None], cover / total.clamp_min(1)])
        return self._weights[key].repeat(1, frames)


class RegionCond:
    """Carries the prompts into the forward, as ComfyUI's CONDConstant does.

    Prompts of other regions, and those without any, never share a forward with these.
    """

    def __init__(self, cond: RegionPrompts) -> None:
        self.cond = cond

    def process_cond(self, batch_size: int, area: object = None, **_: object) -> RegionCond:
        """Called before every forward."""
        if area is not None:
            raise ValueError(
                "the conditioning of Foveate Regions lies over the whole picture, but another node "
                f"gave it an area: {area}; remove Conditioning (Set Area) behind it"
            )
        return self

    def can_concat(self, other: RegionCond) -> bool:
        return self.cond is other.cond

    def concat(self, others: list[RegionCond]) -> RegionPrompts:
        return self.cond

    def size(self) -> list[int]:
        return [1]


def add_region(conditioning: list[Entry], region: list[Entry], mask: torch.Tensor) -> list[Entry]:
    """`conditioning` with the prompt `region` where `mask` [1, h, w] or [h, w] is.

    Raises ValueError for conditionings that are not one prompt each, and for a mask that is none.
    """
    (text, extra), (own, own_extra) = (
        _single("conditioning", conditioning),
        _single("region", region),
    )
    if text.shape[-1] != own.shape[-1] or text.shape[0] != own.shape[0]:
        raise ValueError(
            f"conditioning has shape {tuple(text.shape)} and region {tuple(own.shape)}: both must "
            "come from the same CLIP"
        )
    if find_prompts(own_extra) is not None:
        raise ValueError("region has regions of its own: chain nodes through conditioning instead")
    earlier = find_prompts(extra) or RegionPrompts((text.shape[1],), ())
    prompts = RegionPrompts((*earlier.lengths, own.shape[1]), (*earlier.masks, _checked(mask)))
    model_conds = {**extra.get("model_conds", {}), KEY: RegionCond(prompts)}
    return [[torch.cat([text, own.to(text)], 1), {**extra, "model_conds": model_conds}]]


def find_prompts(extra: dict) -> RegionPrompts | None:
    """The regions of a conditioning, if it has any."""
    cond = extra.get("model_conds", {}).get(KEY)
    return None if cond is None else cond.cond


def _single(name: str, conditioning: list[Entry]) -> Entry:
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} must be one prompt, got {len(conditioning)}: Conditioning (Combine) and this "
            "node exclude each other"
        )
    text, extra = conditioning[0]
    for key, way_out in _EXCLUDED.items():
        if extra.get(key) is not None:
            raise ValueError(f"{name} carries {key!r}, which does not go with regions: {way_out}")
    return text, extra


def _checked(mask: torch.Tensor) -> torch.Tensor:
    mask = mask[0] if mask.dim() == 3 and mask.shape[0] == 1 else mask
    if mask.dim() != 2 or not (mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1):
        raise ValueError(
            f"mask must be one mask [h, w] with values in 0..1, got shape {tuple(mask.shape)}"
        )
    if not mask.any():
        raise ValueError("mask is empty: leave the region out instead")
    return mask.float().cpu()


def couple(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    prompts: RegionPrompts,
    layout: TokenLayout,
    scale: float | None,
) -> torch.Tensor:
    """Cross-attention of grid queries q [B, H, N, D] to the prompts: sum_r w_r softmax_r.

    Each prompt is computed for the pixels that have a weight of it.
    """
    out = torch.zeros_like(q)
    weights = prompts.weights(layout)
    for segment, weight in zip(prompts.segments, weights, strict=True):
        rows = weight.nonzero()[:, 0].to(q.device)
        if len(rows) == 0:
            continue
        part = F.scaled_dot_product_attention(
            q[:, :, rows], k[:, :, segment], v[:, :, segment], scale=scale
        )
        own = weight.to(q.device, q.dtype)[rows, None]
        out.index_add_(2, rows, part * own)
    return out


def couple_joint(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    prompts: RegionPrompts,
    layout: TokenLayout,
    scale: float | None,
    over_grid: OverGrid | None = None,
) -> torch.Tensor:
    """Joint attention q, k, v [B, H, N, D] by `layout`, its text being the prompts.

    Image queries see the image, reference images and their prompts; a prompt sees itself, its
    pixels and the references; references see everything. `over_grid` gives attention of the image
    to itself in the place of the dense one.
    """
    biases = prompts.weights(layout).to(q.device, torch.promote_types(q.dtype, torch.float32)).log()
    grid, behind = layout.grid_slice, slice(layout.grid_slice.stop, None)
    out = torch.empty_like(q)
    image = q[:, :, grid]
    branches = [
        partial_attention(image, k[:, :, grid], v[:, :, grid], None, scale)
        if over_grid is None
        else over_grid(image, k[:, :, grid], v[:, :, grid])
    ]
    if layout.extra:
        branches.append(partial_attention(image, k[:, :, behind], v[:, :, behind], None, scale))
        out[:, :, behind] = F.scaled_dot_product_attention(q[:, :, behind], k, v, scale=scale)
    for segment, bias in zip(prompts.segments, biases, strict=True):
        part, lse = partial_attention(image, k[:, :, segment], v[:, :, segment], None, scale)
        branches.append((part, lse + bias))
        out[:, :, segment] = _text(q, k, v, segment, layout, bias, scale)
    out[:, :, grid] = merge(*zip(*branches, strict=True))[0]
    return out


def _text(q, k, v, segment, layout, bias, scale):
    """A prompt's queries: to itself and the references as they are, to the image by its weights."""
    keys, values = (torch.cat([x[:, :, segment], x[:, :, layout.text :]], 2) for x in (k, v))
    size = segment.stop - segment.start
    mask = F.pad(bias, (size, keys.shape[2] - size - len(bias)))[None].to(q.dtype)
    return F.scaled_dot_product_attention(q[:, :, segment], keys, values, mask, scale=scale)
