"""Other people's caches over steps, where they are installed, and how often they attended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from diffusers import (
    DiffusionPipeline,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from ...attn_processors.hosts import denoiser_of
from ...attn_processors.layouts import attention_layers

__all__ = ["Peer", "counted_calls", "peers"]


# switches a cache on for the length of a block
Peer = Callable[[DiffusionPipeline], AbstractContextManager[None]]


def peers(pipe: DiffusionPipeline) -> dict[str, Peer]:
    """Those that this pipeline and this machine can run, by name."""
    found: dict[str, Peer] = {}
    if hasattr(pipe, "unet"):
        if find_spec("DeepCache") is not None:
            for n in (2, 3, 5):
                found[f"DeepCache, interval {n}"] = partial(_deep_cache, interval=n)
        return found
    for n in (2, 3, 5):
        taylor = TaylorSeerCacheConfig(cache_interval=n, disable_cache_before_step=3)
        found[f"diffusers' hook ({n})"] = partial(_hook, spatial=n)
        found[f"diffusers' TaylorSeer ({n})"] = partial(_diffusers, config=taylor)
    for x in (0.1, 0.2):
        first = FirstBlockCacheConfig(threshold=x)
        found[f"diffusers' FirstBlockCache ({x})"] = partial(_diffusers, config=first)
    if find_spec("cache_dit") is not None:
        for x in (0.12, 0.24, 0.48):
            found[f"cache-dit, threshold {x}"] = partial(_cache_dit, threshold=x)
    return found


def _hook(pipe: DiffusionPipeline, spatial: int) -> AbstractContextManager[None]:
    """diffusers' own pyramid attention broadcast; `spatial` is its skip range."""
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=spatial,
        spatial_attention_timestep_skip_range=(100, 850),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    return _diffusers(pipe, config)


@contextmanager
def _diffusers(pipe: DiffusionPipeline, config: object) -> Iterator[None]:
    """A cache of diffusers' own."""
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def _deep_cache(pipe: DiffusionPipeline, interval: int) -> Iterator[None]:
    """The inner blocks of a UNet run in every so many steps."""
    helper = import_module("DeepCache").DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


@contextmanager
def _cache_dit(pipe: DiffusionPipeline, threshold: float) -> Iterator[None]:
    """DBCache: the blocks after the first are reused up to this difference of residuals."""
    package = import_module("cache_dit")
    config = package.DBCacheConfig(
        Fn_compute_blocks=1, residual_diff_threshold=threshold, enable_separate_cfg=True
    )
    package.enable_cache(pipe, cache_config=config)
    try:
        yield
    finally:
        package.disable_cache(pipe)


@contextmanager
def counted_calls(pipe: DiffusionPipeline) -> Iterator[list[str]]:
    """Grows by a layer's name whenever that layer computes: whenever it projects its queries."""
    computed: list[str] = []
    handles = [
        layer.to_q.register_forward_hook(lambda *_, name=name: computed.append(name))
        for name, layer in attention_layers(denoiser_of(pipe, "counted_calls")[0]).items()
    ]
    try:
        yield computed
    finally:
        for handle in handles:
            handle.remove()
