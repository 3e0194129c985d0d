"""Reads what cuobjdump and nvdisasm print about a cubin: resources and instructions (SASS)."""

from __future__ import annotations

import re

from .loops import Instruction, Listing

__all__ = ["is_product", "parse", "product_kind", "resources"]

LABEL = re.compile(r"^\s*(\.L\w+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?P<predicate>@!?U?P\w+\s+)?(?P<text>[^;]+);")
JUMP = re.compile(r"`\((\.L\w+)\)")
PRODUCT = re.compile(r"^(?:[HIQOD]?G?MMA|UTC[HIQO]MMA)\b")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def _instruction(predicate: str | None, text: str) -> Instruction:
    opcode, _, operands = text.strip().partition(" ")
    name = opcode.partition(".")[0]
    jump = JUMP.search(operands) if name in {"BRA", "UBRA"} else None
    always = predicate is None and operands.strip().startswith("`") if jump else predicate is None
    ends = always and (jump is not None or name in {"EXIT", "RET", "BRX", "KILL"})
    return Instruction(opcode, jump and jump[1], falls_through=not ends)


def parse(listing: str) -> Listing:
    """Instructions and labels of `nvdisasm -c`."""
    instructions: list[Instruction] = []
    labels = {}
    for line in listing.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.search(line):
            instructions.append(_instruction(found["predicate"], found["text"]))
    return Listing(instructions, labels)


def is_product(opcode: str) -> bool:
    """Is it a tensor-core instruction?"""
    return PRODUCT.match(opcode) is not None


def product_kind(opcode: str) -> str:
    """Name and shape: `HGMMA.64x64x16.F32.BF16` is an `HGMMA.64x64x16`."""
    return re.match(r"\w+(?:\.(?:\d+x\d+x\d+|\d+)\b)?", opcode)[0]


def resources(usage: str) -> dict[str, int]:
    """Registers a thread, and bytes of stack a thread, from `cuobjdump -res-usage`."""
    found = USAGE.search(usage)
    if found is None:
        raise ValueError(f"no REG, STACK, SHARED and LOCAL in what cuobjdump says: {usage!r}")
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spill": stack + local}
