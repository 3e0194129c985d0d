"""The figures of one kernel on one architecture, read from its machine code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import ModuleType

from .loops import Listing, inner_loops

__all__ = ["Loop", "Reading", "read_listing"]


@dataclass(frozen=True)
class Loop:
    instructions: int  # of one thread, in one trip
    products: dict[str, int]  # of one warp, in one trip: kind -> number


@dataclass(frozen=True)
class Reading:
    registers: int  # a thread
    spill: int  # bytes of stack or scratch, a thread
    shared: int  # bytes, a program
    tensor_memory: int  # columns, a program
    threads: int  # a program
    kinds: tuple[str, ...]  # tensor-core instructions anywhere in the kernel
    loops: tuple[Loop, ...]  # inner loops with tensor-core instructions, in order of address


def _loop(opcodes: Counter[str], isa: ModuleType) -> Loop:
    products: Counter[str] = Counter()
    for opcode, number in opcodes.items():
        if isa.is_product(opcode):
            products[isa.product_kind(opcode)] += number
    return Loop(opcodes.total(), dict(sorted(products.items())))


def read_listing(
    listing: Listing, isa: ModuleType, *, registers: int, spill: int, shared: int,
    tensor_memory: int, threads: int,
) -> Reading:  # fmt: skip
    """Puts a listing and the resources together; `isa` is the module `sass` or `amdgcn`."""
    opcodes = {instruction.opcode for instruction in listing.instructions}
    kinds = {isa.product_kind(opcode) for opcode in opcodes if isa.is_product(opcode)}
    loops = tuple(_loop(opcodes, isa) for opcodes in inner_loops(listing, isa.is_product))
    return Reading(registers, spill, shared, tensor_memory, threads, tuple(sorted(kinds)), loops)
