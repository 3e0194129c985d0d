"""Foveate Report: what the other nodes did in a sampling."""

from __future__ import annotations

from comfy_api.latest import io

from ..patch import ModelPatcher, find_patch
from .category import CATEGORY

__all__ = ["FoveateReport"]


class FoveateReport(io.ComfyNode):
    """Text on what ran in the sampling that `after` comes from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoveateReport",
            display_name="Foveate Report",
            category=CATEGORY,
            description="Layer by layer: where the operator ran, how many keys a query was "
            "compared with, and why a layer was left alone; what was reused between steps.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the last foveate node gives."),
                io.AnyType.Input(
                    "after",
                    tooltip="What the sampler gives (LATENT) or anything made of it, so that the "
                    "report is written after the sampling.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="The report as text.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: ModelPatcher, after: object) -> io.NodeOutput:
        patch = find_patch(model)
        if patch is None:
            raise ValueError(
                "this model has no foveate node before it: connect the output of Foveate "
                "Attention or of another one, and see that it is not bypassed"
            )
        report = patch.report()
        return io.NodeOutput(report, ui={"text": (report,)})
