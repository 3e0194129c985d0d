"""What a kernel may use, and when its figures fail the check.

Limits: shared memory that one program can opt in to (CUDA C Programming Guide, table of technical
specifications), local data share of CDNA3, columns of tensor memory of a multiprocessor. Triton
compiles beyond all of them without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..variants import Variant
from .reading import Reading

__all__ = ["SHARED_LIMIT", "TENSOR_MEMORY_LIMIT", "Row", "faults", "rises", "row"]

KIB = 1024
SHARED_LIMIT = {
    "sm_80": 163 * KIB,
    "sm_86": 99 * KIB,
    "sm_89": 99 * KIB,
    "sm_90": 227 * KIB,
    "sm_100": 227 * KIB,
    "gfx942": 64 * KIB,
}
TENSOR_MEMORY_LIMIT = 512  # columns
RISE = 1.10


@dataclass(frozen=True)
class Row:
    """One line of the table: a variant on an architecture."""

    file: str
    name: str
    architecture: str
    default: bool
    num_warps: int
    num_stages: int
    registers: int
    spill: int
    shared: int
    tensor_memory: int
    products: Mapping[str, int]  # of the last loop; 0 for a kind outside of it
    per_element: tuple[float, ...]  # instructions of a thread per score element, loop by loop


def row(file: str, variant: Variant, architecture: str, reading: Reading) -> Row:
    """Figures of a reading, per score element where the variant declares its tiles."""
    products = dict.fromkeys(reading.kinds, 0)
    if reading.loops:
        products = dict(reading.loops[-1].products)
    per_element = [
        round(loop.instructions * reading.threads / (queries * keys), 2)
        for loop, (queries, keys) in zip(reading.loops, variant.tiles, strict=False)
    ]
    return Row(
        file, variant.name, architecture, variant.default, variant.num_warps, variant.num_stages,
        reading.registers, reading.spill, reading.shared, reading.tensor_memory, products,
        tuple(per_element),
    )  # fmt: skip


def _defaults(row: Row) -> list[str]:
    """Faults that only a default configuration may not have."""
    found = []
    if row.spill:
        found.append(f"spills {row.spill} bytes a thread")
    if row.shared > (limit := SHARED_LIMIT[row.architecture]):
        found.append(f"{row.shared} bytes of shared memory, limit {limit}")
    if row.tensor_memory > TENSOR_MEMORY_LIMIT:
        found.append(f"{row.tensor_memory} columns of tensor memory, limit {TENSOR_MEMORY_LIMIT}")
    return found


def faults(row: Row, variant: Variant, reading: Reading, *, bars: bool) -> list[str]:
    """Why the variant fails on this architecture; empty when it does not.

    `bars`: also hold it to `instructions_at_most`, which are set for the newest Triton.
    """
    found = _defaults(row) if variant.default else []
    if variant.tensor_cores and not reading.kinds:
        found.append("no tensor-core instruction")
    if variant.tiles and len(variant.tiles) != len(reading.loops):
        found.append(f"declares {len(variant.tiles)} loops, the code has {len(reading.loops)}")
    most = variant.instructions_at_most.get(row.architecture)
    if bars and most is not None and row.per_element and row.per_element[-1] > most:
        found.append(f"{row.per_element[-1]} instructions per score element, at most {most}")
    return found


def rises(before: Row, after: Row) -> list[str]:
    """What grew by more than a tenth since the figures that are written down."""
    pairs = [("registers", before.registers, after.registers)]
    for number, (old, new) in enumerate(zip(before.per_element, after.per_element, strict=False)):
        pairs.append((f"instructions per score element of loop {number + 1}", old, new))
    return [f"{what} rose from {old} to {new}" for what, old, new in pairs if new > old * RISE]
