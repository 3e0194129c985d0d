"""Train `shapes-sd`: a StableDiffusionPipeline, v-prediction with zero terminal SNR.

The text encoder is trained along, and the probes of `text.py` with it: without them it forgets what
the denoiser does not use yet, relations first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..load import load_shapes
from ..scene import parse_caption
from .data import LatentSet, latent_set
from .loop import TrainingConfig, train
from .noise import Noising, build_scheduler
from .schedule import Curriculum, compiled_if_common
from .text import Probed, probe_loss
from .tokenizers import token_ids

__all__ = ["MORE", "MORE_CONFIG", "Denoiser", "build_unet", "fit", "main"]

# (text part, tokenizer, ids [B, T], hidden states [B, T, width], captions) -> a further loss
TextLoss = Callable[[nn.Module, CLIPTokenizer, torch.Tensor, torch.Tensor, list[str]], torch.Tensor]

CONFIG = TrainingConfig(steps=12_000, learning_rate=1e-3, ema=0.9985, warmup=200)
BASE_MIX = {64: (24, 0.94), 96: (10, 0.03), 128: (6, 0.03)}
EARLY_MIX = {32: (32, 0.45), 64: (24, 0.49), 96: (10, 0.03), 128: (6, 0.03)}
CURRICULUM = Curriculum(stages=((0.3, {32: (32, 1.0)}), (0.6, EARLY_MIX), (1.0, BASE_MIX)))
# for `--more`
MORE_CONFIG = replace(CONFIG, learning_rate=7e-4, ema=0.998)
MORE = Curriculum(stages=((1.0, BASE_MIX),))
UNCONDITIONAL = 0.1
PROBES = 0.1  # weight of the probes
# log-SNR of the steps trained on: a normal distribution, where shapes are decided, and a share of
# uniform timesteps for the first steps of a sampler, where the layout is
LOG_SNR = (-1.5, 2.4)
UNIFORM = 0.2


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),  # diffusers' name for the number of heads: 32 channels a head
        cross_attention_dim=128,
        norm_num_groups=16,
    )


class Denoiser(nn.Module):
    """What is trained: the UNet, and the text part, which holds the text encoder as `encoder`."""

    def __init__(self, unet: UNet2DConditionModel, text: nn.Module):
        super().__init__()
        self.unet, self.text = unet, text


class VLoss:
    """v-prediction loss on pictures of the sizes that the curriculum asks for."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        sets: dict[int, LatentSet],
        curriculum: Curriculum,
        steps: int,
        text_loss: TextLoss | None,
    ):
        self.tokenizer, self.sets = tokenizer, sets
        self.curriculum, self.steps = curriculum, steps
        self.text_loss = text_loss
        self.noising = Noising(LOG_SNR, UNIFORM)

    def __call__(self, model: Denoiser, step: int, generator: torch.Generator) -> torch.Tensor:
        side, size = self.curriculum.at(step / self.steps, generator)
        x, captions = self.sets[side].batch(size, generator)
        ids = token_ids(self.tokenizer, captions)
        hidden = model.text.encoder(ids).last_hidden_state
        dropped = torch.rand(size, generator=generator) < UNCONDITIONAL
        text = torch.where(dropped[:, None, None], self._empty(model), hidden)
        noisy, t, velocity = self.noising(x, generator)
        with compiled_if_common(side):
            v = model.unet(noisy.contiguous(memory_format=torch.channels_last), t, text).sample
        loss = (v - velocity).square().mean()
        if self.text_loss is None:
            return loss
        return loss + self.text_loss(model.text, self.tokenizer, ids, hidden, captions)

    def _empty(self, model: Denoiser) -> torch.Tensor:
        return model.text.encoder(token_ids(self.tokenizer, [""])).last_hidden_state


def probes_of(
    text: Probed,
    tokenizer: CLIPTokenizer,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    captions: list[str],
) -> torch.Tensor:
    asks = [parse_caption(caption) for caption in captions]
    return PROBES * probe_loss(text, tokenizer, ids, hidden, asks)


def fresh_pipeline(vae: Path, text: Path) -> StableDiffusionPipeline:
    """An untrained UNet between a trained autoencoder and a trained text encoder."""
    return StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(vae),
        text_encoder=CLIPTextModel.from_pretrained(text / "encoder").eval(),
        tokenizer=CLIPTokenizer.from_pretrained(text / "tokenizer"),
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def fit(
    pipe: StableDiffusionPipeline,
    text: nn.Module,
    out: Path,
    config: TrainingConfig,
    curriculum: Curriculum,
    text_loss: TextLoss | None = None,
) -> None:
    """Train the UNet of `pipe`, and `text` along; the averaged pipeline goes to `out`/pipeline."""
    cache = out.parent / "latents"
    sets = {s: latent_set(pipe.vae, s, n, 1, cache) for s, n in curriculum.set_sizes().items()}

    def save(average: Denoiser, step: int) -> None:
        parts = {**pipe.components, "unet": average.unet, "text_encoder": average.text.encoder}
        StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(
            out / "pipeline"
        )

    loss_of = VLoss(pipe.tokenizer, sets, curriculum, config.steps, text_loss)
    pipe.unet.compile(dynamic=False)
    model = Denoiser(pipe.unet.to(memory_format=torch.channels_last), text).train()
    train(model, loss_of, out, config, save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/sd"))
    parser.add_argument("--vae", type=Path, default=Path("runs/autoencoder/vae"))
    parser.add_argument("--text", type=Path, default=Path("runs/text/clip"))
    parser.add_argument("--more", type=int, help="steps to go on from the shipped weights")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(CONFIG.seed)
    if arguments.more is None:
        pipe, curriculum = fresh_pipeline(arguments.vae, arguments.text), CURRICULUM
        config = CONFIG
    else:
        pipe, curriculum = load_shapes("sd"), MORE
        config = replace(MORE_CONFIG, steps=arguments.more)
    fit(pipe, Probed(pipe.text_encoder), arguments.out, config, curriculum, probes_of)


if __name__ == "__main__":
    main()
