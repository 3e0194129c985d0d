"""Foveate Broadcast: attention outputs of one step again in the next."""

from __future__ import annotations

from comfy_api.latest import io

from ...kernels.broadcast import STORES
from ..broadcast import KINDS, MODES, BroadcastSettings
from ..patch import ModelPatcher, install
from .category import CATEGORY
from .percents import percents

__all__ = ["FoveateBroadcast"]


class FoveateBroadcast(io.ComfyNode):
    """MODEL in, the same model that does not compute attention in every step out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoveateBroadcast",
            display_name="Foveate Broadcast",
            category=CATEGORY,
            description="Computes attention in every n-th step and reuses or forecasts its output "
            "in the steps between. Changes the picture a little and holds outputs in memory.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; a copy is."),
                *_options(),
            ],
            outputs=[io.Model.Output(tooltip="The model that skips attention in some steps.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        mode: str,
        every: int,
        start_percent: float,
        end_percent: float,
        kinds: str,
        store: str,
    ) -> io.NodeOutput:
        settings = BroadcastSettings(
            mode=mode,
            every=every,
            start_percent=start_percent,
            end_percent=end_percent,
            kinds=kinds,
            store=store,
        )
        return io.NodeOutput(install(model, settings))


def _options() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="forecast",
            tooltip="What happens between computed steps. reuse: the last computed output. "
            "forecast: the last two, extrapolated to this step; holds twice as much.",
        ),
        io.Int.Input(
            "every",
            default=2,
            min=1,
            max=16,
            tooltip="Every n-th step computes; 1 computes always. 2 is safe, more is faster and "
            "changes the picture more.",
        ),
        *percents(
            0.1,
            0.85,
            at_start="Part of the steps of this sampling that is computed first. Early steps lay "
            "out the picture.",
            at_end="Part of the steps of this sampling after which all compute. The last two "
            "always do.",
        ),
        io.Combo.Input(
            "kinds",
            options=list(KINDS),
            default="all",
            tooltip="Which layers. self: the picture to itself, and joint layers of text and "
            "picture. cross: the picture to the prompt.",
        ),
        io.Combo.Input(
            "store",
            options=list(STORES),
            default="native",
            tooltip="How outputs are held. native: as they are. bf16, int8, fp8: in fewer bytes, "
            "rounded.",
        ),
    ]
