"""Foveate Regions: a prompt for a part of the picture."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..patch import ModelPatcher, install
from ..regions import Entry, add_region
from .category import CATEGORY

__all__ = ["FoveateRegions"]


class FoveateRegions(io.ComfyNode):
    """MODEL and CONDITIONING in, both with one region more out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoveateRegions",
            display_name="Foveate Regions",
            category=CATEGORY,
            description="A prompt of its own where the mask is, in the same forward. One node for "
            "each region, one behind the other.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; a copy is."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt of all that no region covers, or what another Foveate "
                    "Regions gives.",
                ),
                io.Conditioning.Input("region", tooltip="The prompt of this region."),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the region is, at any size. Between 0 and 1 it shares a pixel "
                    "with the other prompt; regions may overlap.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model that knows regions. Only it can be sampled "
                    "with this conditioning."
                ),
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="All prompts, and where they belong."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: list[Entry],
        region: list[Entry],
        mask: torch.Tensor,
    ) -> io.NodeOutput:
        return io.NodeOutput(install(model, None), add_region(conditioning, region, mask))
