"""What there is to compile: each variant of each kernel file on each of its architectures."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from ..variants import Variant
from .build import cached_build
from .reading import Reading

__all__ = ["Job", "jobs_matching", "read"]

KERNELS = __package__.rpartition(".")[0]
Job = tuple[str, str, str]  # module, variant, architecture


def _modules() -> list[str]:
    """Names of the modules beside this package that declare variants."""
    names = [info.name for info in iter_modules([str(Path(__file__).parents[1])]) if not info.ispkg]
    return [name for name in names if hasattr(import_module(f"{KERNELS}.{name}"), "variants")]


def _variants(module: str) -> dict[str, Variant]:
    return {variant.name: variant for variant in import_module(f"{KERNELS}.{module}").variants()}


def jobs_matching(pattern: str) -> Iterator[tuple[Job, Variant]]:
    """Every variant on every architecture that runs it; raises ValueError on a name used twice."""
    seen: dict[str, str] = {}
    for module in _modules():
        for variant in import_module(f"{KERNELS}.{module}").variants():
            if variant.name in seen:
                raise ValueError(f"{variant.name!r} is declared in {seen[variant.name]}, {module}")
            seen[variant.name] = module
            if fnmatch(variant.name, pattern):
                for architecture in variant.architectures:
                    yield (module, variant.name, architecture), variant


def read(job: Job, folder: Path) -> Reading:
    """What a worker does: kernels do not travel between processes, so it looks them up again."""
    module, name, architecture = job
    return cached_build(_variants(module)[name], architecture, folder)
