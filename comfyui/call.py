"""One call of ComfyUI's attention function, as [B, H, N, D] tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["AttentionCall", "read_call"]

_FLAT, _BY_HEAD = "[B, N, H * D]", "[B, H, N, D]"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCall:
    """The arguments that matter here; q, k, v are [B, H, N, D] views.

    unsupported: why the call cannot go to an operator, whatever its layout.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    options: dict[str, object]
    scale: float | None
    precision: torch.dtype | None
    flat_output: bool
    unsupported: str | None

    @property
    def is_cross(self) -> bool:
        """Whether queries and keys differ in number or in batch, as to a prompt."""
        return self.q.shape[0] != self.k.shape[0] or self.q.shape[2] != self.k.shape[2]

    def wide(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v in the precision the model asks for."""
        if self.precision is None:
            return self.q, self.k, self.v
        return tuple(x.to(self.precision) for x in (self.q, self.k, self.v))

    def finish(self, out: torch.Tensor) -> torch.Tensor:
        """The operator's output [B, H, N, D] in the shape and precision the model expects."""
        out = out.to(self.q.dtype)
        return out.transpose(1, 2).flatten(2) if self.flat_output else out


def read_call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int | None = None,
    mask: torch.Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    *,
    transformer_options: dict[str, object] | None = None,
    scale: float | None = None,
    # the arguments below say nothing of what is attended to
    enable_gqa: bool = False,
    low_precision_attention: bool = False,
    _inside_attn_wrapper: bool = False,
    **unknown: object,
) -> AttentionCall | str:
    """The arguments of `optimized_attention` (any of its versions), or why they cannot be read."""
    if q.dim() != (4 if skip_reshape else 3):
        expected = _BY_HEAD if skip_reshape else _FLAT
        return f"queries of shape {tuple(q.shape)} where {expected} was expected"
    if not skip_reshape:
        if heads is None:
            return "the call does not give the number of heads"
        # SD3 gives flat queries and keys, and values that are split already
        q, k, v = (x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        options={} if transformer_options is None else transformer_options,
        scale=scale,
        precision=attn_precision,
        flat_output=not skip_output_reshape,
        unsupported=_why_not(q, k, v, mask, unknown),
    )


def _why_not(q, k, v, mask, unknown) -> str | None:
    if mask is not None:
        return "the call carries an attention mask"
    named = [name for name, value in unknown.items() if value is not None and value is not False]
    if named:
        return f"the call has an argument this version does not know: {', '.join(named)}"
    if k.shape != v.shape or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        return "queries, keys and values differ in heads or in head size"
    if not q.dtype == k.dtype == v.dtype:
        return "queries, keys and values differ in type"
    return None
