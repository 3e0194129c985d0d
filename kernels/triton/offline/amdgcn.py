"""Reads the assembly that LLVM writes for AMD GPUs: resources and instructions (AMDGCN)."""

from __future__ import annotations

import re

from .loops import Instruction, Listing

__all__ = ["is_product", "parse", "product_kind", "resources"]

LABEL = re.compile(r"^(\.L\w+):")
INSTRUCTION = re.compile(r"^\s+([a-z]+_[a-z0-9_]+)\s*([^;]*)")
PRODUCT = re.compile(r"^v_s?mfmac?_|^v_s?wmmac?_")


def parse(listing: str) -> Listing:
    """Instructions and labels of the first function."""
    instructions: list[Instruction] = []
    labels = {}
    for line in listing.partition(".Lfunc_end")[0].splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            opcode, operands = found[1], found[2].strip()
            jumps = opcode == "s_branch" or opcode.startswith("s_cbranch")
            ends = opcode in {"s_branch", "s_endpgm", "s_setpc_b64"}
            instructions.append(Instruction(opcode, operands if jumps else None, not ends))
    return Listing(instructions, labels)


def is_product(opcode: str) -> bool:
    """Is it a matrix-core instruction?"""
    return PRODUCT.match(opcode) is not None


def product_kind(opcode: str) -> str:
    """Name and shape: `v_mfma_f32_32x32x8_bf16` is a `mfma_32x32x8`."""
    return re.sub(r"^v_(\w+?)_[a-z0-9]+_(\d+x\d+x\d+).*", r"\1_\2", opcode)


def resources(assembly: str) -> dict[str, int]:
    """Registers a lane, vector and accumulation together, and bytes of scratch a lane."""
    names = {"registers": "vgpr_count", "spill": "private_segment_fixed_size"}
    found = {key: re.search(rf"\.{name}:\s+(\d+)", assembly) for key, name in names.items()}
    missing = [names[key] for key, match in found.items() if match is None]
    if missing:
        raise ValueError(f"the assembly does not say {', '.join(missing)}")
    return {key: int(match[1]) for key, match in found.items()}
