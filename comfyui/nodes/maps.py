"""Foveate Read Maps and Foveate Attention Maps: what each phrase of a prompt is attended by."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..maps import PhraseSettings, heat
from ..patch import ModelPatcher, find_patch, install
from ..phrases import find_phrases
from .category import CATEGORY
from .percents import percents

__all__ = ["FoveateAttentionMaps", "FoveateReadMaps"]


class FoveateReadMaps(io.ComfyNode):
    """MODEL in, the same model that notes where it attends to phrases out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoveateReadMaps",
            display_name="Foveate Read Maps",
            category=CATEGORY,
            description="Reads how much each pixel attends to phrases of the prompt. The picture "
            "stays as it is; each step that is read takes longer.",
            inputs=[
                io.Model.Input("model", tooltip="The model to read; a copy is."),
                io.Clip.Input("clip", tooltip="The text encoder that encodes the prompt."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="The positive prompt, the same as in the text encoder's node.",
                ),
                io.String.Input(
                    "phrases",
                    multiline=True,
                    tooltip="Words or phrases of the prompt, one a line, written as in the prompt.",
                ),
                *percents(
                    0.0,
                    1.0,
                    at_start="Part of the steps of this sampling at which reading begins.",
                    at_end="Part of the steps of this sampling at which reading ends.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model that is read while it samples.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        text: str,
        phrases: str,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        names = [line.strip() for line in phrases.splitlines() if line.strip()]
        if not names:
            raise ValueError("phrases is empty: write words of the prompt, one phrase a line")
        places, length = find_phrases(clip.tokenize, text, names)
        settings = PhraseSettings(
            places=places, length=length, start_percent=start_percent, end_percent=end_percent
        )
        return io.NodeOutput(install(model, settings))


class FoveateAttentionMaps(io.ComfyNode):
    """IMAGE out: the picture with a heat map for each phrase."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoveateAttentionMaps",
            display_name="Foveate Attention Maps",
            category=CATEGORY,
            description="Draws over the picture what Foveate Read Maps has read: one picture for "
            "each phrase, in their order.",
            inputs=[
                io.Model.Input("model", tooltip="The model that Foveate Read Maps gives."),
                io.Image.Input("image", tooltip="The pictures of the sampling, decoded."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", tooltip="Phrase after phrase, all pictures."
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="The same maps as masks; the largest value of a phrase is 1.",
                ),
                io.String.Output(
                    display_name="legend",
                    tooltip="The phrases in the order of the pictures, each with its largest mass.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, image: torch.Tensor) -> io.NodeOutput:
        patch = find_patch(model)
        if patch is None or patch.maps is None:
            raise ValueError(
                "this model has no Foveate Read Maps before it: connect the output of that node, "
                "and see that it is not bypassed"
            )
        maps = patch.maps.maps(tuple(image.shape[1:3]))
        pictures, masks = heat(image, list(maps.values()))
        legend = "\n".join(f"{name}: at most {one.max():.3f}" for name, one in maps.items())
        return io.NodeOutput(pictures, masks, legend)
