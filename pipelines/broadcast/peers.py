"""Other people's caches over steps, where they are installed, and how often they attended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from diffusers import DiffusionPipeline, PyramidAttentionBroadcastConfig
from torch import nn

from ...attn_processors.layouts import attention_layers

__all__ = ["Peer", "counted_calls", "peers"]


@dataclass(frozen=True)
class Peer:
    """A cache that `on` switches on for the length of a block.

    diffusers' hook: `spatial` is its skip range. cache-dit's DBCache: `threshold` is the difference
    of residuals up to which the blocks after the first are reused.
    """

    name: str
    spatial: int | None = None
    threshold: float | None = None

    @contextmanager
    def on(self, pipe: DiffusionPipeline) -> Iterator[None]:
        if self.spatial is not None:
            config = PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=self.spatial,
                spatial_attention_timestep_skip_range=(100, 850),
                current_timestep_callback=lambda: pipe.current_timestep,
            )
            pipe.transformer.enable_cache(config)
            off = pipe.transformer.disable_cache
        else:
            package = import_module("cache_dit")
            config = package.DBCacheConfig(
                Fn_compute_blocks=1,
                residual_diff_threshold=self.threshold,
                enable_separate_cfg=True,
            )
            package.enable_cache(pipe, cache_config=config)

            def off() -> None:
                package.disable_cache(pipe)

        try:
            yield
        finally:
            off()


def peers(pipe: DiffusionPipeline) -> list[Peer]:
    """Those that this pipeline and this machine can run; both need a transformer."""
    if not hasattr(pipe, "transformer"):
        return []
    found = [Peer(f"diffusers' hook ({n})", spatial=n) for n in (2, 3, 5)]
    if find_spec("cache_dit") is not None:
        found += [Peer(f"cache-dit, threshold {x}", threshold=x) for x in (0.12, 0.24, 0.48)]
    return found


@contextmanager
def counted_calls(model: nn.Module) -> Iterator[list[str]]:
    """Grows by a layer's name whenever that layer computes: whenever it projects its queries."""
    computed: list[str] = []
    handles = [
        layer.to_q.register_forward_hook(lambda *_, name=name: computed.append(name))
        for name, layer in attention_layers(model).items()
    ]
    try:
        yield computed
    finally:
        for handle in handles:
            handle.remove()
