"""Train the autoencoder that both embedded models share: 4 pixels to a latent, 4 channels.

The loss holds the latents near zero mean and unit variance, so that `scaling_factor` is 1 and
`shift_factor` 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from ..render import render
from ..scene import sample_scene
from .loop import TrainingConfig, train

__all__ = ["build_autoencoder", "main", "pictures"]

CONFIG = TrainingConfig(steps=1500, learning_rate=2e-3, ema=0.995, warmup=50)
BATCH = 12
SIDES = (32, 48, 64, 64, 80)


def build_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(2, 1, 1),
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def pictures(rng: np.random.Generator, number: int, side: int) -> torch.Tensor:
    """Random scenes in the autoencoder's range, [number, 3, side, side] in -1..1."""
    drawn = np.stack([render(sample_scene(rng), side, side) for _ in range(number)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1


def loss_of(model: AutoencoderTiny, step: int, generator: torch.Generator) -> torch.Tensor:
    rng = np.random.default_rng(generator.initial_seed())
    x = pictures(rng, BATCH, int(rng.choice(SIDES)))
    z = model.encode(x).latents
    noise = torch.randn(z.shape, generator=generator)
    y = model.decode(z + 0.05 * noise).sample  # a decoder that forgives the denoiser's small errors
    spread = z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()
    edges = sum(F.l1_loss(x.diff(dim=d), y.diff(dim=d)) for d in (-1, -2))
    return F.mse_loss(x, y) + 0.3 * F.l1_loss(x, y) + 0.3 * edges + 0.02 * spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/autoencoder"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(CONFIG.seed)

    def save(average: AutoencoderTiny, step: int) -> None:
        average.save_pretrained(arguments.out / "vae")

    train(build_autoencoder(), loss_of, arguments.out, CONFIG, save)


if __name__ == "__main__":
    main()
