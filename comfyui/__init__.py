"""ComfyUI nodes: foveate's operators in the attention of ComfyUI's own models.

They use `kernels` alone: ComfyUI's models have no diffusers processors. The modules that import
ComfyUI load when ComfyUI asks for the nodes; the others run without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import FoveateExtension

__all__ = ["comfy_entrypoint"]


async def comfy_entrypoint() -> FoveateExtension:
    """What ComfyUI calls for the nodes of this folder (V3 API); needs a running ComfyUI."""
    from .nodes import FoveateExtension

    return FoveateExtension()
