"""Train `shapes-motion`: motion modules for AnimateDiffPipeline on shapes-sd, which obey a word.

Motion modules see no text: what "moving right" says reaches them through the cross-attention before
them, so it and the text encoder learn along; the rest of the UNet stays that of shapes-sd. A linear
probe makes the encoder say the motion. A pixel's colour then depends on word, place and time at
once, which shows only over many clips: half the steps see a few frames of four times as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..clips import NUM_FRAMES
from ..load import DIFFERENCE, load_shapes
from ..scene import MOTIONS, parse_caption
from .data import LatentSet, clip_set
from .loop import TrainingConfig, train
from .noise import Noising
from .schedule import Curriculum
from .text import WIDTH
from .tokenizers import token_ids
from .unet import PROBES, UNCONDITIONAL

__all__ = ["build_adapter", "main"]

CONFIG = TrainingConfig(steps=4_000, learning_rate=1e-3, ema=0.995, warmup=60, save_every=100)
CLIPS = {32: 3_000, 64: 2_000}  # kept per size
FEW = 4  # frames of a clip in the lesson of the word


@dataclass(frozen=True, slots=True)
class Lessons:
    """Sizes over the training, and the share of it (from, to) that sees a few frames a clip."""

    sizes: Curriculum
    word: tuple[float, float]


CLIPS_MIX = {32: (4, 0.9), 64: (1, 0.1)}  # what motion modules are for
WORD_MIX = {32: (16, 0.3), 64: (4, 0.7)}
LAST_MIX = {32: (4, 0.3), 64: (1, 0.7)}
FRESH = Lessons(
    Curriculum(((0.3, CLIPS_MIX), (0.45, {32: (16, 1.0)}), (0.75, WORD_MIX), (1.0, LAST_MIX))),
    word=(0.3, 0.75),
)
# for `--start`, which knows the word at 32 pixels
MORE = Lessons(Curriculum(((0.5, WORD_MIX), (1.0, LAST_MIX))), word=(0.0, 0.5))
# noisier than the pictures' own: where things are and go is decided there, and sixteen frames of
# one motion tell it at a sixteenth of the signal
LOG_SNR = (-5.0, 2.5)
UNIFORM = 0.3
MOTION, CROSS = (
    "motion_modules.",
    ".attn2.",
)  # what the names of the UNet's parameters that learn hold


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
    """What is trained: motion modules and cross-attention, the text encoder, and a probe of it."""

    def __init__(self, unet: UNetMotionModel, text_encoder: CLIPTextModel):
        super().__init__()
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(MOTION in name or CROSS in name)
        self.unet, self.text_encoder = unet, text_encoder
        self.at_end = nn.Linear(WIDTH, len(MOTIONS) + 1)

    def save(self, folder: Path) -> None:
        self.unet.save_motion_modules(folder / "motion_adapter")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        tensors = self.unet.state_dict().items()
        cross = {name: tensor for name, tensor in tensors if CROSS in name and MOTION not in name}
        save_file(cross, folder / DIFFERENCE)


class ClipLoss:
    """v-prediction loss on clips; every frame has its own noise, all have one step."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        sets: dict[int, LatentSet],
        lessons: Lessons,
        steps: int,
    ):
        self.tokenizer, self.sets = tokenizer, sets
        self.lessons, self.steps = lessons, steps
        self.noising = Noising(LOG_SNR, UNIFORM)

    def __call__(
        self, model: MotionDenoiser, step: int, generator: torch.Generator
    ) -> torch.Tensor:
        side, size = self.lessons.sizes.at(step / self.steps, generator)
        x, captions = self.sets[side].batch(size, generator)  # [B, 4, F, h, w]
        frames = self.frames(x.shape[2], step, generator)
        x = x[:, :, frames]
        dropped = torch.rand(size, generator=generator) < UNCONDITIONAL
        captions = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        ids = token_ids(self.tokenizer, captions)
        text = model.text_encoder(ids).last_hidden_state
        noisy, t, velocity = self.noising(x, generator)
        with frames_at(model.unet, frames):
            v = model.unet(noisy, t, text.repeat_interleave(len(frames), 0)).sample
        is_end = ids == self.tokenizer.eos_token_id
        told = motion_loss(model.at_end(text), is_end, captions)
        return (v - velocity).square().mean() + PROBES * told

    def frames(self, number: int, step: int, generator: torch.Generator) -> torch.Tensor:
        """All of them, or FEW at equal distances where the lessons say so."""
        begin, end = self.lessons.word
        if not begin <= step / self.steps < end:
            return torch.arange(number)
        stride = number // FEW
        return torch.arange(FEW) * stride + torch.randint(stride, (), generator=generator)


@contextmanager
def frames_at(unet: UNetMotionModel, frames: torch.Tensor) -> Iterator[None]:
    """Motion modules take the frames they are given for those of these numbers."""
    places = [m for m in unet.modules() if isinstance(m, SinusoidalPositionalEmbedding)]
    whole = [place.pe for place in places]
    for place in places:
        place.pe = place.pe[:, frames]
    try:
        yield
    finally:
        for place, pe in zip(places, whole, strict=True):
            place.pe = pe


def motion_loss(logits: torch.Tensor, is_end: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Cross-entropy of the probe [B, T, motions + 1] at the end token and the padding after it."""
    asked = [parse_caption(text).motions[:1] if text else () for text in captions]
    index = [list(MOTIONS).index(motion[0]) if motion else len(MOTIONS) for motion in asked]
    wanted = torch.tensor(index)[:, None].expand_as(is_end)
    return F.cross_entropy(logits[is_end], wanted[is_end])


def fresh_model(pipe: StableDiffusionPipeline) -> MotionDenoiser:
    unet = UNetMotionModel.from_unet2d(pipe.unet, build_adapter())
    return MotionDenoiser(unet, pipe.text_encoder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/motion"))
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--start", type=Path, help="run whose average is gone on from")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(CONFIG.seed)
    config = replace(CONFIG, steps=arguments.steps)
    pipe = load_shapes("sd")

    cache = arguments.out.parent / "latents"
    sets = {side: clip_set(pipe.vae, side, number, 1, cache) for side, number in CLIPS.items()}

    def save(average: MotionDenoiser, step: int) -> None:
        average.save(arguments.out / "pipeline")

    model, lessons = fresh_model(pipe).train(), FRESH
    if arguments.start is not None:
        lessons = MORE
        state = torch.load(arguments.start / "state.pt", weights_only=True)
        model.load_state_dict(state["average"])
    loss_of = ClipLoss(pipe.tokenizer, sets, lessons, config.steps)
    train(model, loss_of, arguments.out, config, save)


if __name__ == "__main__":
    main()
