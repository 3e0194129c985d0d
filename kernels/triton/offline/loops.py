"""Natural loops of a listing of machine code (Aho, Sethi, Ullman: Compilers, section 10.4).

The lowest address of a loop says little: compilers move the retry of a barrier behind the end of
the function and jump back. So loops are found by dominance: an edge to a block that dominates its
source closes a loop, whose body is everything that reaches the source without passing the header.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Instruction", "Listing", "inner_loops"]


@dataclass(frozen=True)
class Instruction:
    opcode: str
    target: str | None = None  # label it may jump to
    falls_through: bool = True  # False: an unconditional jump or an end


@dataclass(frozen=True)
class Listing:
    instructions: list[Instruction]
    labels: dict[str, int]  # label -> index of the instruction behind it


def _block_starts(listing: Listing) -> list[int]:
    size = len(listing.instructions)
    cuts = {0}
    for index, instruction in enumerate(listing.instructions):
        if instruction.target is not None or not instruction.falls_through:
            cuts |= {index + 1, listing.labels.get(instruction.target, 0)}
    return sorted(cut for cut in cuts if cut < size)


def _successors(listing: Listing, starts: list[int]) -> list[list[int]]:
    block_at = {start: block for block, start in enumerate(starts)}
    successors = []
    for block, end in enumerate([*starts[1:], len(listing.instructions)]):
        last = listing.instructions[end - 1]
        after = [block + 1] if last.falls_through and end < len(listing.instructions) else []
        if last.target is not None and listing.labels.get(last.target) in block_at:
            after.append(block_at[listing.labels[last.target]])
        successors.append(after)
    return successors


def _reachable(successors: list[list[int]]) -> list[int]:
    """Blocks reached from the first one, in depth-first order."""
    order, stack, seen = [], [0], {0}
    while stack:
        block = stack.pop()
        order.append(block)
        fresh = [after for after in successors[block] if after not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return order


def _dominators(order: list[int], before: list[list[int]]) -> dict[int, int]:
    """Blocks that every path to a block passes, as a bit set."""
    everything = sum(1 << block for block in order)
    dominators = dict.fromkeys(order, everything) | {0: 1}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            common = everything
            for source in before[block]:
                common &= dominators[source]
            common |= 1 << block
            changed |= common != dominators[block]
            dominators[block] = common
    return dominators


def _body(header: int, source: int, before: list[list[int]]) -> set[int]:
    """Blocks of the loop up to the one that closes it: what lies behind is a retry, seldom run."""
    body, stack = {header}, [source]
    while stack:
        block = stack.pop()
        if block not in body:
            body.add(block)
            stack.extend(before[block])
    return {block for block in body if block <= source}


def _loops(listing: Listing) -> list[frozenset[int]]:
    """Indices of the instructions of every natural loop, by address of the header."""
    starts = _block_starts(listing)
    successors = _successors(listing, starts)
    order = _reachable(successors)
    before: list[list[int]] = [[] for _ in starts]
    for block in order:
        for after in successors[block]:
            before[after].append(block)
    dominators = _dominators(order, before)
    bodies: dict[int, set[int]] = {}
    for source in order:
        for header in successors[source]:
            if dominators[source] >> header & 1:
                bodies[header] = bodies.get(header, set()) | _body(header, source, before)
    ends = [*starts[1:], len(listing.instructions)]
    return [
        frozenset(i for block in bodies[header] for i in range(starts[block], ends[block]))
        for header in sorted(bodies)
    ]


def inner_loops(listing: Listing, is_product: Callable[[str], bool]) -> list[Counter[str]]:
    """Opcodes of the innermost loops with a matrix product in them, in order of address."""
    loops = [
        loop
        for loop in _loops(listing)
        if any(is_product(listing.instructions[i].opcode) for i in loop)
    ]
    inner = [loop for loop in loops if not any(other < loop for other in loops)]
    return [Counter(listing.instructions[i].opcode for i in loop) for loop in inner]
