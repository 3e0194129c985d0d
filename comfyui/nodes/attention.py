"""Foveate Attention: an operator in the attention of a model."""

from __future__ import annotations

from comfy_api.latest import io

from ..modes import MODES
from ..patch import ModelPatcher, install
from ..settings import Settings
from .category import CATEGORY
from .percents import percents

__all__ = ["FoveateAttention"]


class FoveateAttention(io.ComfyNode):
    """MODEL in, the same model with an operator in its attention out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoveateAttention",
            display_name="Foveate Attention",
            category=CATEGORY,
            description="Attention that is sharp near each token and coarse or blind far away. "
            "Saves time on large pictures and changes them; Foveate Report says where it ran.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; a copy is."),
                *_options(),
            ],
            outputs=[io.Model.Output(tooltip="The model with the operator in its attention.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        mode: str,
        radius: int,
        pool: int,
        start_percent: float,
        end_percent: float,
        dense_layers: str,
        min_tokens: int,
        verbose: bool,
    ) -> io.NodeOutput:
        settings = Settings(
            mode=mode,
            radius=radius,
            pool=pool,
            start_percent=start_percent,
            end_percent=end_percent,
            dense_layers=dense_layers,
            min_tokens=min_tokens,
            verbose=verbose,
        )
        return io.NodeOutput(install(model, settings))


def _options() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="foveated",
            tooltip="What an image token sees beside all text. foveated: near tokens exactly, far "
            "ones as averages. local: a disc. neighborhood: a box that stays inside the picture. "
            "window: its window of a tiling. agent: everything, through a few pooled queries.",
        ),
        io.Int.Input(
            "radius",
            default=8,
            min=1,
            max=1024,
            tooltip="How far a token sees exactly, in tokens (16 pixels each on Flux and SD3, 8 on "
            "the outer layers of a UNet). Half the side of a box or window. agent does not use it.",
        ),
        io.Int.Input(
            "pool",
            default=4,
            min=2,
            max=64,
            tooltip="foveated: side of a far cell, in tokens. agent: one agent for pool x pool "
            "tokens. The other modes do not use it.",
        ),
        *percents(
            0.2,
            1.0,
            at_start="Part of the sampling at which the operator begins. Early steps lay out the "
            "picture and are best left alone.",
            at_end="Part of the sampling at which the operator ends.",
        ),
        io.String.Input(
            "dense_layers",
            default="",
            tooltip='Numbers of layers to leave alone, such as "0, 1, 47-49", as Foveate Report '
            "counts them.",
        ),
        io.Int.Input(
            "min_tokens",
            default=2048,
            min=0,
            max=1 << 20,
            tooltip="Calls with fewer tokens, text included, are left alone: they are fast anyway.",
        ),
        io.Boolean.Input(
            "verbose",
            default=False,
            tooltip="Print the report to the console after every sampling.",
        ),
    ]
