"""The nodes, for ComfyUI's V3 API. Only ComfyUI loads this folder."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention import FoveateAttention
from .broadcast import FoveateBroadcast
from .maps import FoveateAttentionMaps, FoveateReadMaps
from .regions import FoveateRegions
from .report import FoveateReport

__all__ = ["FoveateExtension"]


class FoveateExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            FoveateAttention,
            FoveateBroadcast,
            FoveateRegions,
            FoveateReadMaps,
            FoveateAttentionMaps,
            FoveateReport,
        ]
