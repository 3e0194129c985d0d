"""The progress bar of a pipeline, set otherwise for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import DiffusionPipeline

__all__ = ["progress_bar", "progress_bar_config"]


def progress_bar_config(pipe: DiffusionPipeline) -> dict[str, object]:
    """What `set_progress_bar_config` was given, {} where it was never called."""
    return dict(getattr(pipe, "_progress_bar_config", {}))


@contextmanager
def progress_bar(
    pipe: DiffusionPipeline, *, disable: bool = False, title: str | None = None
) -> Iterator[None]:
    """Mutes the bar, or titles it where the user has not."""
    config = progress_bar_config(pipe)
    pipe.set_progress_bar_config(
        **({"desc": title} | config | ({"disable": True} if disable else {}))
    )
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**config)
