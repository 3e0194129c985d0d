"""Noisy latents at sampled steps of a v-prediction schedule."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler

__all__ = ["Noising", "build_scheduler"]


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


class Noising:
    """Draws steps and noise; log-SNR is normally distributed (logit-normal in arXiv:2403.03206).

    log_snr: mean and standard deviation. uniform: share of the steps drawn uniformly instead.
    """

    def __init__(self, log_snr: tuple[float, float], uniform: float) -> None:
        self.log_snr, self.uniform = log_snr, uniform
        self.alphas = build_scheduler().alphas_cumprod
        self.minus_log_snr = ((1 - self.alphas) / self.alphas).log()  # ascending, ends with inf

    def __call__(
        self, x: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy x, its steps [B] and the velocity to predict, for x [B, ...]."""
        t = self._timesteps(len(x), generator)
        noise = torch.randn(x.shape, generator=generator)
        a = self.alphas[t].view(-1, *[1] * (x.ndim - 1))
        return a.sqrt() * x + (1 - a).sqrt() * noise, t, a.sqrt() * noise - (1 - a).sqrt() * x

    def _timesteps(self, size: int, generator: torch.Generator) -> torch.Tensor:
        mean, std = self.log_snr
        log_snr = mean + std * torch.randn(size, generator=generator)
        uniform = torch.randint(len(self.alphas), (size,), generator=generator)
        is_uniform = torch.rand(size, generator=generator) < self.uniform
        return torch.where(is_uniform, uniform, torch.searchsorted(self.minus_log_snr, -log_snr))
