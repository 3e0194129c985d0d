"""The losses of a student, layer by layer or end to end, from one forward of its teacher.

Teacher and student are the same model: with its stock processors it is the teacher, with the
student's processor in their place the student. Nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...attn_processors import Handle
from ...attn_processors.layouts import attention_layers, family_of
from ...attn_processors.trained.layers import LayerWeights
from ...kernels.layout import TokenLayout
from .config import DistillConfig
from .noising import Noising
from .record import Conditions, arguments_of, sample_name

__all__ = ["Call", "Distiller", "captured"]

Layouts = Mapping[int, TokenLayout]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an attention module; its arguments are kept where they were asked for."""

    output: Any
    args: tuple = ()
    kwargs: Mapping[str, Any] | None = None


@contextmanager
def captured(
    modules: Mapping[str, nn.Module], *, with_inputs: bool = False
) -> Iterator[dict[str, Call]]:
    """The calls of modules inside the block, by name.

    The hooks are gone before the backward pass, so what gradient checkpointing runs again is not
    captured again.
    """
    calls: dict[str, Call] = {}

    def hook_of(name: str):
        def keep(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            calls[name] = Call(output, args, kwargs) if with_inputs else Call(output)

        return keep

    hooks = [m.register_forward_hook(hook_of(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class Distiller(nn.Module):
    """`forward(batch, layerwise)` gives the losses; its only parameters are the student's.

    The model itself is no submodule: it is frozen, whole on every process, and in no checkpoint.
    Attention losses compare the image rows of whole attention modules, output projection included,
    as LinFusion (arXiv:2409.02097) and CLEAR (arXiv:2412.16112) do.
    """

    def __init__(
        self,
        model: nn.Module,
        handle: Handle,
        weights: LayerWeights,
        noising: Noising,
        shared: Conditions,
        config: DistillConfig,
    ) -> None:
        super().__init__()
        self.student = weights
        modules = attention_layers(model)
        self._frozen = (model, {name: modules[name] for name in weights.names})
        self._handle = handle
        self._noising = noising
        self._shared = shared
        self._config = config

    def forward(
        self, batch: Mapping[str, torch.Tensor], layerwise: bool
    ) -> dict[str, torch.Tensor]:
        """ "loss" and its parts."""
        model, modules = self._frozen
        conditions = {**batch, **self._shared}
        latents, noise, u = (conditions.pop(name) for name in ("latents", "noise", "u"))
        noised = self._noising(latents.float(), noise, u)
        arguments = self._arguments(model, noised.latents, noised.timesteps, conditions)
        with (
            self._handle.paused(),
            torch.no_grad(),
            captured(modules, with_inputs=layerwise) as calls,
        ):
            wanted = model(**arguments, return_dict=False)[0].float()
        layouts = {x.num_tokens: x for x in family_of(model).layouts(model, arguments)}
        if layerwise:
            again = {n: Call(modules[n](*c.args, **c.kwargs)) for n, c in calls.items()}
            loss = self._checked(_attention_loss(again, calls, layouts))
            return {"loss": loss, "attention": loss.detach()}
        with captured(modules) as own:
            answer = model(**arguments, return_dict=False)[0].float()
        return self._weighted(
            task=(answer - noised.target).square().mean(),
            prediction=(answer - wanted).square().mean(),
            attention=_attention_loss(own, calls, layouts),
        )

    def _arguments(
        self,
        model: nn.Module,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
    ) -> dict[str, Any]:
        family = family_of(model)
        return {
            sample_name(model): latents.to(model.dtype),
            family.timestep: (timesteps - family.timestep_offset) / family.timestep_scale,
            **arguments_of(conditions),
        }

    def _weighted(
        self, task: torch.Tensor, prediction: torch.Tensor, attention: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        c = self._config
        loss = (
            c.task_weight * task + c.prediction_weight * prediction + c.attention_weight * attention
        )
        parts = {"task": task, "prediction": prediction, "attention": attention}
        parts = {name: part.detach() for name, part in parts.items()}
        return {"loss": self._checked(loss), **parts}

    def _checked(self, loss: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError(
                "no layer ran the student's operator, so nothing is trained; "
                f"its processor on this model:\n{self._handle.report()}"
            )
        return loss


def _attention_loss(
    own: Mapping[str, Call], wanted: Mapping[str, Call], layouts: Layouts
) -> torch.Tensor:
    """Mean over layers of the mean squared distance of the image rows."""
    distances = [
        (_grid_rows(own[name].output, layouts) - _grid_rows(call.output, layouts)).square().mean()
        for name, call in wanted.items()
    ]
    return torch.stack(distances).mean()


def _grid_rows(output: Any, layouts: Layouts) -> torch.Tensor:
    """Image rows [B, N, C] of a module's output; joint layers give image and text apart."""
    hidden = output[0] if isinstance(output, tuple) else output
    layout = layouts.get(hidden.shape[1])
    return (hidden if layout is None else layout.grid_of(hidden)).float()
