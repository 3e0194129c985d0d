"""Train `shapes-flux`: a FluxPipeline with joint and single-stream blocks, by flow matching.

Both text encoders stay as `text.py` left them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from ..load import load_shapes
from .data import LatentSet, latent_set
from .loop import TrainingConfig, train
from .schedule import Curriculum, compiled_if_common
from .tokenizers import token_ids
from .unet import BASE_MIX, UNCONDITIONAL

__all__ = ["build_scheduler", "build_transformer", "main"]

CONFIG = TrainingConfig(steps=12_000, learning_rate=1e-3, ema=0.9985, warmup=300)
EARLY_MIX = {32: (64, 0.4), 64: (24, 0.54), 96: (10, 0.03), 128: (6, 0.03)}
CURRICULUM = Curriculum(stages=((0.3, {32: (64, 1.0)}), (0.6, EARLY_MIX), (1.0, BASE_MIX)))
# for `--more`: with few pictures above the base size, shapes fell apart at twice that size
WIDE_MIX = {64: (24, 0.5), 96: (10, 0.2), 128: (6, 0.3)}
MORE = Curriculum(stages=((1.0, WIDE_MIX),))
MORE_CONFIG = replace(CONFIG, learning_rate=5e-4, ema=0.998)
# padded lengths seen in training, so that the length may vary later
TEXT_LENGTHS = (20, 32)


def build_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,  # four latent channels, packed two by two
        num_layers=2,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """No shift at the base size (64 tokens), growing with the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=64,
        max_image_seq_len=4096,
        base_shift=0.3,
        max_shift=1.5,
    )


class FlowLoss:
    """Flow matching (arXiv:2210.02747, Eq. 23): v = noise - x at x_t = (1 - t) x + t noise."""

    def __init__(
        self,
        clip: tuple[CLIPTokenizer, CLIPTextModel],
        t5: tuple[T5Tokenizer, T5EncoderModel],
        sets: dict[int, LatentSet],
        curriculum: Curriculum,
        steps: int,
    ):
        self.clip, self.t5, self.sets = clip, t5, sets
        self.curriculum, self.steps = curriculum, steps

    def __call__(
        self, transformer: FluxTransformer2DModel, step: int, generator: torch.Generator
    ) -> torch.Tensor:
        side, size = self.curriculum.at(step / self.steps, generator)
        x, captions = self.sets[side].batch(size, generator)
        dropped = torch.rand(size, generator=generator) < UNCONDITIONAL
        captions = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        text, pooled = self._encode(captions, generator)
        x = FluxPipeline._pack_latents(x, *x.shape)  # [B, tokens, 16]
        noise = torch.randn(x.shape, generator=generator)
        # logit-normal, early steps favoured: they decide what stands where
        t = torch.sigmoid(1.2 * torch.randn(size, generator=generator) + 0.5)
        noisy = torch.lerp(x, noise, t.view(-1, 1, 1))
        with compiled_if_common(side):
            v = transformer(
                hidden_states=noisy,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=t,
                img_ids=_img_ids(side // 8),
                txt_ids=torch.zeros(text.shape[1], 3),
            ).sample
        return (v - (noise - x)).square().mean()

    @torch.no_grad()
    def _encode(
        self, captions: list[str], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text of a random padded length [B, T, D] and the pooled text [B, D]."""
        length = TEXT_LENGTHS[int(torch.randint(len(TEXT_LENGTHS), (), generator=generator))]
        tokenizer, encoder = self.t5
        text = encoder(token_ids(tokenizer, captions, length)).last_hidden_state
        tokenizer, encoder = self.clip
        return text, encoder(token_ids(tokenizer, captions)).pooler_output


def _img_ids(side: int) -> torch.Tensor:
    return FluxPipeline._prepare_latent_image_ids(1, side, side, "cpu", torch.float32)


def fresh_pipeline(vae: Path, text: Path) -> FluxPipeline:
    """An untrained transformer between a trained autoencoder and trained text encoders."""
    return FluxPipeline(
        vae=AutoencoderTiny.from_pretrained(vae),
        text_encoder=CLIPTextModel.from_pretrained(text / "clip" / "encoder").eval(),
        tokenizer=CLIPTokenizer.from_pretrained(text / "clip" / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(text / "t5" / "encoder").eval(),
        tokenizer_2=T5Tokenizer.from_pretrained(text / "t5" / "tokenizer"),
        transformer=build_transformer(),
        scheduler=build_scheduler(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/flux"))
    parser.add_argument("--vae", type=Path, default=Path("runs/autoencoder/vae"))
    parser.add_argument("--text", type=Path, default=Path("runs/text"))
    parser.add_argument("--more", type=int, help="steps to go on from the shipped weights")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(CONFIG.seed)
    if arguments.more is None:
        pipe, config, curriculum = fresh_pipeline(arguments.vae, arguments.text), CONFIG, CURRICULUM
    else:
        pipe, curriculum = load_shapes("flux"), MORE
        config = replace(MORE_CONFIG, steps=arguments.more)
    cache = arguments.out.parent / "latents"
    sets = {s: latent_set(pipe.vae, s, n, 1, cache) for s, n in curriculum.set_sizes().items()}

    def save(average: FluxTransformer2DModel, step: int) -> None:
        parts = {**pipe.components, "transformer": average}
        FluxPipeline(**parts).save_pretrained(arguments.out / "pipeline")

    clip, t5 = (pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)
    loss_of = FlowLoss(clip, t5, sets, curriculum, config.steps)
    pipe.transformer.compile_repeated_blocks(dynamic=False)
    train(pipe.transformer.train(), loss_of, arguments.out, config, save)


if __name__ == "__main__":
    main()
