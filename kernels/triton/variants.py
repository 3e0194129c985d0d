"""What a kernel file says about itself, so that it can be compiled and judged without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARCHITECTURES", "Variant"]

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Variant:
    """One kernel in one compile-time configuration, on the architectures that run it.

    `signature` gives the type of every argument that is not a constexpr, in Triton's spelling:
    `"*bf16"`, `"i32"`, `"fp32"`, `"tensordesc<bf16[1, 1, 8, 8, 128]>"`. Pointers are compiled as
    16-byte aligned, as torch allocates them; `divisible` names the integers that are multiples of
    16 in use, most often strides.

    `tiles` has one (queries, keys) pair for each loop that holds tensor-core instructions, in the
    order of the source: the score elements that one trip of the loop computes in one program.
    `instructions_at_most` bounds the instructions per score element of the last of these loops,
    by architecture.
    """

    name: str
    kernel: Any  # triton.JITFunction
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    architectures: tuple[str, ...] = ARCHITECTURES
    default: bool = False  # shipped as a default: it must not spill
    divisible: tuple[str, ...] = ()
    tiles: tuple[tuple[int, int], ...] = ()
    tensor_cores: bool = True  # False: no matrix product, or one in float32 by choice
    instructions_at_most: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # further options of the backend

    def __post_init__(self) -> None:
        unknown = sorted({*self.architectures} - {*ARCHITECTURES})
        if unknown:
            raise ValueError(f"architectures must be among {ARCHITECTURES}, got {unknown}")
