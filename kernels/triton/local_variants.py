"""Every default of the kernels of local, neighbourhood and foveated attention, for the check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .foveated_backward import foveated_backward_cells_kernel
from .launch import architectures, signature
from .local_backward import local_backward_keys_kernel, local_backward_queries_kernel
from .local_forward import local_forward_kernel
from .local_tiles import LocalTiles, defaults
from .rows import head_parts
from .variants import Variant
from .windows import BOX, CUT, DISC, ELLIPSOID

__all__ = ["variant_of", "variants"]

# the head dims that stand for their class: one power of two, two, beyond 128
_DIMS = (64, 80, 96, 128, 160)
_KERNELS = {
    "forward": local_forward_kernel,
    "queries": local_backward_queries_kernel,
    "keys": local_backward_keys_kernel,
}
_WINDOWS = {
    "local": DISC.value,
    "local_heads": DISC.value,  # a radius for each
    "local_frames": ELLIPSOID.value,  # a radius along frames
    "foveated": DISC.value,
    "neighborhood": BOX.value,
    "neighborhood_dilated": BOX.value,
    "window": CUT.value,
}
_FLOAT32 = ("LSE", "GRAD_LSE", "SHIFT", "CLSE", "CSHIFT")
_POOLED = ("K1", "V1", "K2", "V2")


def variants() -> list[Variant]:
    """Each operator's; the foveated one has one level of cells of side 4."""
    return [
        *_variants("local", _KERNELS, _DIMS),
        *_variants("local_heads", _KERNELS, (128,)),
        *_variants("local_frames", _KERNELS, (128,)),
        *_variants("neighborhood", _KERNELS, _DIMS),
        *_variants("neighborhood_dilated", ("forward",), (128,)),
        *_variants("window", _KERNELS, (128,)),
        *_variants("foveated", ("forward", "queries"), (128,)),
        *(_cells(*case) for case in _cases("foveated", "keys", (128,))),
    ]


def _variants(operator: str, names: Iterable[str], dims: Sequence[int]) -> list[Variant]:
    return [variant_of(operator, *case) for name in names for case in _cases(operator, name, dims)]


def _cases(
    operator: str, name: str, dims: Sequence[int]
) -> list[tuple[str, str, int, int, LocalTiles]]:
    """Name, architecture, head dim, least radius and tiles of each different default."""
    found = {}
    one_disc = operator in ("local", "foveated")
    descriptors = operator not in ("neighborhood_dilated", "window")
    for dim in dims:
        for arch, radius, tiles in defaults(name, dim, one_disc, descriptors):
            key = (arch, dim, tiles)
            found[key] = min(radius, found.get(key, radius))
    return [(name, arch, dim, radius, tiles) for (arch, dim, tiles), radius in found.items()]


def variant_of(
    operator: str, name: str, arch: str, dim: int, radius: int, tiles: LocalTiles
) -> Variant:
    """The kernel "forward", "queries" or "keys" with some tiles, as it is compiled."""
    kernel = _KERNELS[name]
    levels = int(operator == "foveated")
    shapes = _shapes(kernel, dim, tiles) | {
        x: None for x in _POOLED[2 * levels :] if x in kernel.arg_names
    }
    if operator == "foveated":
        shapes |= {"CELL": 4, "LEVELS": levels, "POOL": 4}
    shapes["WINDOW"] = _WINDOWS[operator]
    shapes["FRAMES"] = operator == "local_frames"
    if operator == "local_heads":
        del shapes["RADII"]
    types = _types(kernel, shapes)
    if "TMA" in shapes and tiles.tma:
        box = f"tensordesc<bf16[1, 1, {tiles.key_height}, {tiles.key_width}, {dim}]>"
        block = f"tensordesc<bf16[1, 1, {tiles.context}, {dim}]>"
        types |= {"K": box, "V": box, "CK": block, "CV": block}
    most = _most(dim, radius) if name == "forward" and operator == "local" else {}
    loops = _loops(name, tiles) + levels * _loops("cells", tiles)
    return _made(
        f"{operator}_{name}_{dim}_{arch}_{radius}", kernel, arch, types, shapes, tiles, loops, most
    )


def _cells(name: str, arch: str, dim: int, radius: int, tiles: LocalTiles) -> Variant:
    kernel = foveated_backward_cells_kernel
    shapes = _shapes(kernel, dim, tiles)
    types = _types(kernel, shapes)
    loops = _loops("cells", tiles)
    return _made(
        f"foveated_cells_{dim}_{arch}_{radius}", kernel, arch, types, shapes, tiles, loops, {}
    )


def _shapes(kernel: Any, dim: int, tiles: LocalTiles) -> dict[str, Any]:
    d0, d1 = head_parts(dim)
    shapes = {
        "D": dim, "D0": d0, "D1": d1, "TH": tiles.height, "TW": tiles.width,
        "KH": tiles.key_height, "KW": tiles.key_width, "BC": tiles.context, "CELL": 1,
        "FRAMES": False, "WINDOW": DISC.value, "RADII": None, "CONTEXT": True, "TAIL": True,
        "TMA": tiles.tma, "UNIT": 8, "I64": False,
        "LEVELS": 0, "POOL": 4, "CUT": False, "U": 4, "LAST": True, "PARTITION": True,
    }  # fmt: skip
    return {key: value for key, value in shapes.items() if key in kernel.arg_names}


def _types(kernel: Any, shapes: Mapping[str, Any]) -> dict[str, str]:
    types = signature(kernel, shapes, "bf16", [x for x in _FLOAT32 if x in kernel.arg_names])
    kinds = {"scale": "fp32", "mass": "fp32", "RADII": "*i32"}
    return types | {name: kind for name, kind in kinds.items() if name in types}


def _loops(name: str, tiles: LocalTiles) -> tuple[tuple[int, int], ...]:
    """Score elements of the loops over the context, few and many, and over the grid."""
    stationary = tiles.height * tiles.width
    few = ((stationary, tiles.context if tiles.tma else 16),) if name == "forward" else ()
    context = ((stationary, tiles.context),) if name != "cells" else ()
    return (*few, *context, (stationary, tiles.key_height * tiles.key_width))


def _made(name, kernel, arch, types, shapes, tiles, loops, most) -> Variant:
    return Variant(
        name,
        kernel,
        types,
        shapes,
        tiles.num_warps,
        tiles.num_stages,
        architectures(arch),
        default=True,
        tiles=loops,
        instructions_at_most=most,
    )


def _most(dim: int, radius: int) -> dict[str, float]:
    """Instructions per masked score element that local attention's forward kernel is held to."""
    return {"sm_80": 21.0, "sm_90": 17.0 if radius <= 8 else 13.0} if dim == 128 else {}
