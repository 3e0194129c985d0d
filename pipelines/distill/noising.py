"""Noisy latents and what a denoiser should answer, by diffusers' own schedulers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler

__all__ = ["Noised", "Noising"]


class Noised(NamedTuple):
    """latents with noise, the timesteps [B] on the scheduler's scale, the answer wanted."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


class Noising:
    """Training noise for the pipelines of a scheduler: flow matching, epsilon, v or sample.

    Flow matching (arXiv:2210.02747, Eq. 23) wants noise - latents. Every other scheduler shares the
    noise levels of its betas with DDPMScheduler, which adds the noise.
    """

    def __init__(self, scheduler: object) -> None:
        self.is_flow = hasattr(scheduler, "scale_noise")
        # a fresh one: the pipeline's own is in the middle of its last picture
        kind = type(scheduler) if self.is_flow else DDPMScheduler
        self.scheduler = kind.from_config(scheduler.config)

    def __call__(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """`u` [B] in [0, 1] is the place in the schedule, 0 the noisiest."""
        table = self.scheduler.timesteps.to(u.device)
        timesteps = table[(u * len(table)).long().clamp(0, len(table) - 1)]
        if self.is_flow:
            noisy = self.scheduler.scale_noise(latents, timesteps, noise)
            return Noised(noisy, timesteps, noise - latents)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        return Noised(noisy, timesteps, self._target(latents, noise, timesteps))

    def _target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return {"epsilon": noise, "sample": latents}[kind]
