"""The stock way: one processor object on every attention, put there by `set_attn_processor`.

A processor sees one call of one layer and nothing of the model. What can be known is read from the
call; what cannot be known is an error that says what to pass. Supported hosts: `FluxAttention`, and
`Attention` with the plain `AttnProcessor2_0` call (UNets). `foveate.apply` knows the model and
needs none of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from ..kernels.layout import TokenLayout
from .layouts import halved_grids
from .redirect import Attend, Redirected, redirected_class

if TYPE_CHECKING:
    from .base import AttnProcessor

__all__ = ["check_grid", "run_stock"]

_USE_APPLY = "use foveate.apply(pipe, processor)"


def check_grid(grid: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    """`grid` as (frames, rows, columns)."""
    if grid is None:
        return None
    sizes = tuple(grid) if isinstance(grid, Sequence) else ()
    # True is an int
    if len(sizes) not in (2, 3) or not all(type(n) is int and n >= 1 for n in sizes):
        raise ValueError(
            f"grid must be (rows, columns) or (frames, rows, columns), each >= 1, got {grid!r}"
        )
    return sizes if len(sizes) == 3 else (1, *sizes)


def run_stock(
    processor: AttnProcessor,
    attn: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None,
    temb: torch.Tensor | None,
    ip_hidden_states: list[torch.Tensor] | None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The layer `attn` with its stock processor, softmax replaced by the processor's operator."""
    if processor._parallel_config is not None:
        raise NotImplementedError(
            f"{type(processor).__name__} does not run under context parallelism"
        )
    if ip_hidden_states is not None or isinstance(encoder_hidden_states, tuple):
        raise NotImplementedError(
            f"set_attn_processor took the place of the IP-Adapter's processors; "
            f"load_ip_adapter again, then {_USE_APPLY}"
        )
    default = getattr(attn, "_default_processor_cls", None)
    if default is not None and default.__name__ == "FluxAttnProcessor":
        attend = _FluxCall(processor, encoder_hidden_states, image_rotary_emb)
        host = _host(processor, default, attend)
        return host(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
    if not _is_plain(attn, encoder_hidden_states, image_rotary_emb):
        raise NotImplementedError(
            f"{type(processor).__name__} cannot tell the stock processor of this "
            f"{type(attn).__name__}; {_USE_APPLY}"
        )
    attend = _PlainCall(processor, is_cross=encoder_hidden_states is not None)
    host = _host(processor, AttnProcessor2_0, attend)
    return host(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def _is_plain(
    attn: nn.Module,
    encoder_hidden_states: torch.Tensor | None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None,
) -> bool:
    """Whether the call is one of `AttnProcessor2_0`, as far as can be told."""
    if not isinstance(attn, Attention) or attn.added_kv_proj_dim is not None or rotary is not None:
        return False
    # text for a module that is not made for cross-attention is joint attention
    return encoder_hidden_states is None or attn.is_cross_attention


def _host(processor: AttnProcessor, stock_class: type, attend: Attend) -> Redirected:
    host = _host_class(stock_class)()
    host.attend = attend
    host._attention_backend = processor._attention_backend
    return host


# dynamo would trace into the making of the class
@torch.compiler.assume_constant_result
def _host_class(stock_class: type) -> type:
    return redirected_class(stock_class)


class _PlainCall:
    """One call of a plain `Attention`: cross-attention runs dense, the rest by the grid given."""

    def __init__(self, processor: AttnProcessor, *, is_cross: bool) -> None:
        self.processor = processor
        self.is_cross = is_cross

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None,
        special: str | None,
    ) -> torch.Tensor | None:
        if self.is_cross:
            return None
        _refuse_special(self.processor, special)
        layout = _layout_by_count(self.processor, q.shape[2])
        if self.processor.why_dense(layout) is not None:
            return None
        return self.processor.attend(q, k, v, layout=layout, scale=scale)


class _FluxCall:
    """One call of a `FluxAttention`: text first; grid given, or read from the rotary embedding."""

    def __init__(
        self,
        processor: AttnProcessor,
        encoder_hidden_states: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self.processor = processor
        self.text = None if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        self.rotary = rotary

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None,
        special: str | None,
    ) -> torch.Tensor | None:
        _refuse_special(self.processor, special)
        layout = self._layout(q.shape[2])
        if self.processor.why_dense(layout) is not None:
            return None
        return self.processor.attend(q, k, v, layout=layout, scale=scale)

    def _layout(self, num_tokens: int) -> TokenLayout:
        grid = self.processor.grid
        if grid is None:
            return self.processor.rotary_reader.read(self.rotary, self.text)
        # single-stream blocks do not say where the text ends
        text = num_tokens - math.prod(grid) if self.text is None else self.text
        if text < 0 or text + math.prod(grid) != num_tokens:
            raise ValueError(
                f"{type(self.processor).__name__}: grid={grid} does not fit {num_tokens} tokens"
                f"{'' if self.text is None else f', {self.text} of them text'}; "
                f"pass the grid of this size, or {_USE_APPLY}, which reads it"
            )
        return TokenLayout(text=text, grid=grid)


def _refuse_special(processor: AttnProcessor, special: str | None) -> None:
    if special is not None:
        raise NotImplementedError(
            f"{type(processor).__name__}: {special}; "
            f"{_USE_APPLY}, which runs such layers dense and reports them"
        )


def _layout_by_count(processor: AttnProcessor, num_tokens: int) -> TokenLayout:
    """The level of the grid given that has this many tokens."""
    name = type(processor).__name__
    if processor.grid is None:
        raise ValueError(
            f"{name}: a UNet layer does not tell its grid ({num_tokens} tokens); "
            f"pass grid=(rows, columns) of the latent, or {_USE_APPLY}, which reads it"
        )
    frames, rows, columns = processor.grid
    for height, width in halved_grids(rows, columns):
        if frames * height * width == num_tokens:
            return TokenLayout(grid=(frames, height, width))
    raise ValueError(
        f"{name}: {num_tokens} tokens are no level of grid={processor.grid}; "
        f"pass the (rows, columns) of the latent, or {_USE_APPLY}, which reads it at every size"
    )
