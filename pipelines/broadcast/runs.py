"""Runs of a pipeline on given prompts, always with the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..progress_bar import progress_bar

__all__ = ["Runs", "psnr"]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What is drawn: prompts, steps, and the other arguments of the call.

    The noise of prompt i depends on seed + i alone.
    """

    pipe: DiffusionPipeline
    prompts: tuple[str, ...]
    steps: int
    call: Mapping[str, object]
    seed: int = 0

    def __post_init__(self) -> None:
        own = {"prompt", "num_inference_steps", "generator", "output_type", "return_dict"}
        taken = sorted(own & set(self.call))
        if taken:
            raise ValueError(f"{', '.join(taken)} of the call are set here; leave them out")

    @cached_property
    def dense(self) -> np.ndarray:
        """The pictures of the pipeline as it is, drawn when first asked for."""
        return self.pictures()

    def latents(self) -> torch.Tensor:
        """Final latents, float32 on the CPU, the prompts first."""
        return self._run("latent").float().cpu()

    def pictures(self) -> np.ndarray:
        """Float in 0..1, the prompts first."""
        return np.asarray(self._run("np"))

    @torch.no_grad()
    def _run(self, output_type: str):
        number = len(self.prompts)
        generators = [torch.Generator().manual_seed(self.seed + i) for i in range(number)]
        # Flux wants as many negative prompts as prompts
        repeated = {k: [v] * number for k, v in self.call.items() if k == "negative_prompt"}
        with progress_bar(self.pipe, disable=True):
            result = self.pipe(
                prompt=list(self.prompts),
                num_inference_steps=self.steps,
                generator=generators,
                output_type=output_type,
                **{**self.call, **repeated},
            )
        return result[0]


def psnr(pictures: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """dB of every picture against the exact one, at most 99."""
    axes = tuple(range(1, np.ndim(exact)))
    error = ((pictures.astype(np.float64) - exact.astype(np.float64)) ** 2).mean(axes)
    return np.minimum(-10 * np.log10(np.maximum(error, 1e-12)), 99.0)
