"""Rows that ranks give to each other, in one all-to-all a call, and how many bytes that was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from .shard import Range

__all__ = ["Exchange", "Piece", "collect", "overlap"]


class Exchange:
    """All-to-all over a process group, with gradients. Every rank makes the same calls.

    received: bytes that this rank has got from others, backward passes included.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.ranks = dist.get_world_size(group)
        self.received = 0

    def swap(
        self, sends: Sequence[Sequence[torch.Tensor]], shapes: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[torch.Tensor]]:
        """Give sends[r] to each rank r; what comes from each rank has these `shapes`.

        All tensors are of one dtype on one device. What a rank would give to itself is left out.
        """
        if self.ranks == 1:
            return [[]]
        sizes = [[torch.Size(shape).numel() for shape in row] for row in shapes]
        flat = torch.cat([x.reshape(-1) for row in sends for x in row])
        inputs = [sum(x.numel() for x in row) for row in sends]
        out = _AllToAll.apply(flat, self, inputs, [sum(row) for row in sizes])
        parts = iter(out.split([size for row in sizes for size in row]))
        return [[next(parts).view(shape) for shape in row] for row in shapes]

    def _move(
        self, flat: torch.Tensor, inputs: Sequence[int], outputs: Sequence[int]
    ) -> torch.Tensor:
        out = flat.new_empty(sum(outputs))
        dist.all_to_all_single(out, flat, list(outputs), list(inputs), group=self.group)
        self.received += out.numel() * out.element_size()
        return out


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, flat, exchange, inputs, outputs):
        ctx.back = exchange, outputs, inputs
        return exchange._move(flat, inputs, outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        exchange, inputs, outputs = ctx.back
        return exchange._move(grad.contiguous(), inputs, outputs), None, None, None


class Piece(NamedTuple):
    """Tensors [B, H, n, D] of one shape, n being what a rank holds of a sequence.

    held, needed: ranges of the sequence, for each rank. Where ranks hold the same place, what
    they hold adds up.
    """

    tensors: tuple[torch.Tensor, ...]
    held: Sequence[Range]
    needed: Sequence[Range]


def collect(exchange: Exchange, pieces: Sequence[Piece]) -> list[list[torch.Tensor]]:
    """What this rank needs of each tensor of each piece, [B, H, needed, D]; one all-to-all."""
    me, others = exchange.rank, range(exchange.ranks)
    sends = [[] if r == me else [x for p in pieces for x in _part(p, me, r)] for r in others]
    shapes = [[] if r == me else [s for p in pieces for s in _shapes(p, r, me)] for r in others]
    got = [iter(row) for row in exchange.swap(sends, shapes)]
    return [_assemble(piece, got, me) for piece in pieces]


def overlap(a: Range, b: Range) -> Range:
    """What two ranges share; (x, x) where that is nothing."""
    start = max(a[0], b[0])
    return start, max(start, min(a[1], b[1]))


def _part(piece: Piece, holder: int, taker: int) -> list[torch.Tensor]:
    """The rows of the holder, this rank, that the taker needs."""
    first = piece.held[holder][0]
    start, stop = overlap(piece.held[holder], piece.needed[taker])
    return [x[:, :, start - first : stop - first] for x in piece.tensors]


def _shapes(piece: Piece, holder: int, taker: int) -> list[tuple[int, ...]]:
    start, stop = overlap(piece.held[holder], piece.needed[taker])
    return [(*x.shape[:2], stop - start, *x.shape[3:]) for x in piece.tensors]


def _assemble(piece: Piece, got: Sequence, me: int) -> list[torch.Tensor]:
    """Each tensor from the rows of every rank, in order, added up where they overlap."""
    need = piece.needed[me]
    ranges = [overlap(held, need) for held in piece.held]
    rows = [_part(piece, me, me) if r == me else None for r in range(len(ranges))]
    rows = [[next(got[r]) for _ in piece.tensors] if x is None else x for r, x in enumerate(rows)]
    joined = [torch.cat(parts, 2) for parts in zip(*rows, strict=True)]
    if sum(stop - start for start, stop in ranges) == need[1] - need[0]:
        return joined
    device = joined[0].device
    places = torch.cat([torch.arange(*each, device=device) for each in ranges]) - need[0]
    zeros = (x.new_zeros(*x.shape[:2], need[1] - need[0], *x.shape[3:]) for x in joined)
    return [zero.index_add(2, places, x) for zero, x in zip(zeros, joined, strict=True)]
