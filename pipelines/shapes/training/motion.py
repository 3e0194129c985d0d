"""Train `shapes-motion`: motion modules and a text encoder for AnimateDiffPipeline on shapes-sd.

The UNet stays that of shapes-sd. Its cross-attention carries what the new words say to the motion
modules behind it, so the text encoder is trained along.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..clips import NUM_FRAMES
from ..load import load_shapes
from .data import LatentSet, clip_set
from .loop import TrainingConfig, train
from .noise import Noising
from .schedule import Curriculum
from .tokenizers import token_ids
from .unet import UNCONDITIONAL

__all__ = ["build_adapter", "main"]

CONFIG = TrainingConfig(steps=4_000, learning_rate=1e-3, ema=0.995, warmup=60, save_every=100)
CLIPS = {32: 3_000, 64: 1_000}  # kept per size
# the motion modules see one place at a time: what they learn on small pictures holds on large ones
EARLY_MIX = {32: (2, 0.9), 64: (1, 0.1)}
LATE_MIX = {32: (2, 0.3), 64: (1, 0.7)}
CURRICULUM = Curriculum(stages=((0.75, EARLY_MIX), (1.0, LATE_MIX)))
# noisier than the pictures' own: where things are and go is decided there
LOG_SNR = (-3.0, 2.4)
UNIFORM = 0.4


def build_adapter() -> MotionAdapter:
    """Motion modules that add nothing yet; diffusers' own start at random."""
    adapter = MotionAdapter(
        block_out_channels=(64, 128),
        motion_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=16,
        motion_max_seq_length=NUM_FRAMES,
    )
    for name, weight in adapter.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(weight)
    return adapter


class MotionDenoiser(nn.Module):
    """What is trained: the motion modules of the UNet, and the text encoder."""

    def __init__(self, unet: UNetMotionModel, text_encoder: CLIPTextModel):
        super().__init__()
        unet.freeze_unet2d_params()
        self.unet, self.text_encoder = unet, text_encoder

    def save(self, folder: Path) -> None:
        self.unet.save_motion_modules(folder / "motion_adapter")
        self.text_encoder.save_pretrained(folder / "text_encoder")


class ClipLoss:
    """v-prediction loss on clips; every frame has its own noise, all have one step."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        sets: Callable[[int], LatentSet],
        curriculum: Curriculum,
        steps: int,
    ):
        self.tokenizer, self.sets = tokenizer, sets
        self.curriculum, self.steps = curriculum, steps
        self.noising = Noising(LOG_SNR, UNIFORM)

    def __call__(
        self, model: MotionDenoiser, step: int, generator: torch.Generator
    ) -> torch.Tensor:
        side, size = self.curriculum.at(step / self.steps, generator)
        x, captions = self.sets(side).batch(size, generator)  # [B, 4, F, h, w]
        dropped = torch.rand(size, generator=generator) < UNCONDITIONAL
        captions = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        text = model.text_encoder(token_ids(self.tokenizer, captions)).last_hidden_state
        noisy, t, velocity = self.noising(x, generator)
        v = model.unet(noisy, t, text.repeat_interleave(x.shape[2], 0)).sample
        return (v - velocity).square().mean()


def fresh_model(pipe: StableDiffusionPipeline) -> MotionDenoiser:
    unet = UNetMotionModel.from_unet2d(pipe.unet, build_adapter())
    return MotionDenoiser(unet, pipe.text_encoder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/motion"))
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(CONFIG.seed)
    config = replace(CONFIG, steps=arguments.steps)
    pipe = load_shapes("sd")

    @functools.cache
    def clips(side: int) -> LatentSet:
        return clip_set(pipe.vae, side, CLIPS[side], 1, arguments.out.parent / "latents")

    def save(average: MotionDenoiser, step: int) -> None:
        average.save(arguments.out / "pipeline")

    loss_of = ClipLoss(pipe.tokenizer, clips, CURRICULUM, config.steps)
    train(fresh_model(pipe).train(), loss_of, arguments.out, config, save)


if __name__ == "__main__":
    main()
