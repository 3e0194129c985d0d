"""Every default of local attention's kernels, for the offline check."""

from __future__ import annotations

from typing import Any

from .launch import architectures, signature
from .local_backward import local_backward_keys_kernel, local_backward_queries_kernel
from .local_forward import local_forward_kernel
from .local_tiles import LocalTiles, defaults
from .rows import head_parts
from .variants import Variant

__all__ = ["variants"]

# the head dims that stand for their class: one power of two, two, beyond 128
_DIMS = (64, 80, 96, 128, 160)
_KERNELS = {
    "forward": local_forward_kernel,
    "queries": local_backward_queries_kernel,
    "keys": local_backward_keys_kernel,
}
_FLOAT32 = ("LSE", "GRAD_LSE", "SHIFT", "CLSE", "CSHIFT")


def variants() -> list[Variant]:
    """One for each different default of a kernel, an architecture and a head dim."""
    found = {}
    for name, kernel in _KERNELS.items():
        for dim in _DIMS:
            for arch, radius, tiles in defaults(name, dim):
                kept = found.setdefault((name, arch, dim, tiles), (radius, kernel))
                found[name, arch, dim, tiles] = (min(kept[0], radius), kernel)
    return [_variant(*key, *value) for key, value in found.items()]


def _variant(
    name: str, arch: str, dim: int, tiles: LocalTiles, radius: int, kernel: Any
) -> Variant:
    d0, d1 = head_parts(dim)
    shapes = {
        "D": dim, "D0": d0, "D1": d1, "TH": tiles.height, "TW": tiles.width,
        "KH": tiles.key_height, "KW": tiles.key_width, "BC": tiles.context, "CELL": 1,
        "FRAMES": False, "CONTEXT": True, "TAIL": True, "TMA": tiles.tma, "UNIT": 8, "I64": False,
    }  # fmt: skip
    shapes = {key: value for key, value in shapes.items() if key in kernel.arg_names}
    types = signature(kernel, shapes, "bf16", [x for x in _FLOAT32 if x in kernel.arg_names])
    if "scale" in types:
        types["scale"] = "fp32"
    if tiles.tma:
        box = f"tensordesc<bf16[1, 1, {tiles.key_height}, {tiles.key_width}, {dim}]>"
        block = f"tensordesc<bf16[1, 1, {tiles.context}, {dim}]>"
        types |= {"K": box, "V": box, "CK": block, "CV": block}
    stationary = tiles.height * tiles.width
    return Variant(
        f"local_{name}_{dim}_{arch}_radius_{radius}",
        kernel,
        types,
        shapes,
        tiles.num_warps,
        tiles.num_stages,
        architectures(arch),
        default=True,
        tiles=((stationary, tiles.context), (stationary, tiles.key_height * tiles.key_width)),
        instructions_at_most=_most(name, dim, radius),
    )


def _most(name: str, dim: int, radius: int) -> dict[str, float]:
    """Instructions per masked score element that the forward kernel is held to."""
    if (name, dim) != ("forward", 128):
        return {}
    return {"sm_80": 21.0, "sm_90": 17.0 if radius <= 8 else 13.0}
