"""Compiles one variant for one architecture with the installed Triton, and reads the result.

A reading is kept as JSON under its cause: source, signature, constants, options, architecture,
version of Triton, and the source of the readers themselves.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..variants import Variant
from . import amdgcn, loops, reading, sass
from .reading import Loop, Reading, read_listing

__all__ = ["build", "cached_build"]

READERS = (amdgcn, loops, reading, sass)  # a reading is as old as their source
WAVE = {"cuda": 32, "hip": 64}  # threads a warp


def _target(architecture: str) -> tuple[str, int | str]:
    number = architecture.removeprefix("sm_")
    return ("cuda", int(number)) if number != architecture else ("hip", architecture)


def _signature(variant: Variant) -> dict[str, str]:
    """Types of all arguments in order; raises ValueError when they are not the kernel's."""
    names = list(variant.kernel.arg_names)
    given = {**variant.signature, **dict.fromkeys(variant.constexprs, "constexpr")}
    if sorted(given) != sorted(names):
        missing, unknown = sorted({*names} - {*given}), sorted({*given} - {*names})
        raise ValueError(f"{variant.name}: arguments missing {missing}, unknown {unknown}")
    constants = {parameter.name for parameter in variant.kernel.params if parameter.is_constexpr}
    if typed := sorted(constants & {*variant.signature}):
        raise ValueError(f"{variant.name}: {typed} are constexpr and need a value, got a type")
    return {name: given[name] for name in names}


def _attributes(variant: Variant, signature: dict[str, str]) -> dict[tuple[int], list]:
    unknown = sorted({*variant.divisible} - {*variant.signature})
    if unknown:
        raise ValueError(f"{variant.name}: divisible names no argument: {unknown}")
    return {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in variant.divisible
    }


def _options(variant: Variant) -> dict[str, Any]:
    return {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        **variant.options,
    }


def _compile(variant: Variant, architecture: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = _signature(variant)
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs=dict(variant.constexprs),
        attrs=_attributes(variant, signature),
    )
    backend, name = _target(architecture)
    target = GPUTarget(backend, name, WAVE[backend])
    return triton.compile(source, target=target, options=_options(variant))


def _tool(name: str, *arguments: str) -> str:
    """Runs one of the binary utilities that Triton's wheel brings along."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _listing(compiled: Any, isa: Any) -> tuple[Any, dict[str, int]]:
    if isa is amdgcn:
        assembly = compiled.asm["amdgcn"]
        return isa.parse(assembly), isa.resources(assembly)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code, usage = (
            _tool("nvdisasm", "-c", file.name),
            _tool("cuobjdump", "-res-usage", file.name),
        )
    return isa.parse(code), isa.resources(usage)


def build(variant: Variant, architecture: str) -> Reading:
    """Compiles and reads; what Triton or ptxas raises comes through."""
    backend, _ = _target(architecture)
    isa = sass if backend == "cuda" else amdgcn
    compiled = _compile(variant, architecture)
    listing, used = _listing(compiled, isa)
    return read_listing(
        listing,
        isa,
        **used,
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        threads=compiled.metadata.num_warps * WAVE[backend],
    )


def _key(variant: Variant, architecture: str) -> str:
    import triton

    signature = _signature(variant)
    constants = {
        name: getattr(value, "cache_key", repr(value)) for name, value in variant.constexprs.items()
    }
    cause = [
        *[Path(module.__file__).read_text() for module in READERS],
        triton.__version__,
        variant.kernel.cache_key,
        architecture,
        signature,
        [*_attributes(variant, signature)],
        sorted(constants.items()),
        sorted(_options(variant).items()),
    ]
    return hashlib.sha256(json.dumps(cause).encode()).hexdigest()


def cached_build(variant: Variant, architecture: str, folder: Path) -> Reading:
    """`build`, or what it gave for the same cause; `folder` holds one file a reading."""
    path = folder / f"{_key(variant, architecture)}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        kept["loops"] = tuple(Loop(**loop) for loop in kept["loops"])
        return Reading(**kept | {"kinds": tuple(kept["kinds"])})
    fresh = build(variant, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(fresh)))
    return fresh
