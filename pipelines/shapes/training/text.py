"""Teach the text encoders the caption grammar before any picture is drawn.

Each shape word must know its colour and on which side of the other object it stands, the end token
the whole caption, and the last four padding tokens what stands on the left, on the right, above and
below: CLIP is causal, so the words of the first object cannot know the relation. Linear probes on
the hidden states are trained together with the encoder and then thrown away. It takes minutes and
spares the denoiser the slowest part of its training, binding a colour to its shape and its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ..scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Ask, sample_scene
from .loop import TrainingConfig, train
from .tokenizers import TEXT_LENGTH, clip_tokenizer, t5_tokenizer, token_ids

__all__ = ["Probed", "build_clip", "build_t5", "main", "probe_loss"]

CONFIG = TrainingConfig(steps=1200, learning_rate=1e-3, ema=0.99)
BATCH = 64
WIDTH = 128
MAX_OBJECTS = 3
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def build_clip(vocab_size: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=WIDTH,
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def build_t5(vocab_size: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=WIDTH,
            d_kv=32,
            d_ff=4 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


class Probed(nn.Module):
    """An encoder with linear probes at the shape words, the end and the last padding tokens."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.at_shape = nn.Linear(WIDTH, len(COLOURS) + len(SHAPES) + len(RELATIONS) + 1)
        thing = len(COLOURS) + len(SHAPES) + 2  # of each kind, or none
        relation = len(RELATIONS) + 1
        self.at_end = nn.Linear(WIDTH, relation + len(BACKGROUNDS) + MAX_OBJECTS * thing)
        self.at_padding = nn.Linear(WIDTH, thing)


@dataclass(frozen=True, slots=True)
class Targets:
    """Class indices; a thing is (colour, shape), past the last of each where there is none."""

    at_shape: list[list[int]]  # per object: colour, shape, side
    at_end: list[int]  # relation, background, every thing
    at_padding: list[list[int]]  # the thing on each of the four sides


def targets(ask: Ask) -> Targets:
    """What the probes must say of a caption."""
    nothing = [len(COLOURS), len(SHAPES)]
    things = [[list(COLOURS).index(c), SHAPES.index(s)] for c, s in ask.objects]
    sides = [len(RELATIONS)] * len(things)
    at_padding = [nothing] * len(RELATIONS)
    relation = len(RELATIONS)
    if ask.relation is not None:
        relation = RELATIONS.index(ask.relation)
        sides[:2] = relation, RELATIONS.index(OPPOSITE[ask.relation])
        at_padding[sides[0]], at_padding[sides[1]] = things[:2]
    every = sum((things + [nothing] * MAX_OBJECTS)[:MAX_OBJECTS], [])
    return Targets(
        at_shape=[[*thing, side] for thing, side in zip(things, sides, strict=True)],
        at_end=[relation, list(BACKGROUNDS).index(ask.background), *every],
        at_padding=at_padding,
    )


def probe_loss(
    model: Probed, tokenizer, ids: torch.Tensor, hidden: torch.Tensor, asks: Sequence[Ask]
) -> torch.Tensor:
    """Cross-entropy of the probes on the hidden states [B, T, width] of `ids` [B, T]."""
    shape_ids = torch.tensor([tokenizer(shape).input_ids[-2] for shape in SHAPES])
    rows, columns = torch.isin(ids, shape_ids).nonzero(as_tuple=True)
    ends = (ids == tokenizer.eos_token_id).int().argmax(1)
    wanted = [targets(ask) for ask in asks]
    thing = [len(COLOURS) + 1, len(SHAPES) + 1]
    at_shape = _cross_entropies(
        model.at_shape(hidden[rows, columns]),
        [word for one in wanted for word in one.at_shape],
        [len(COLOURS), len(SHAPES), len(RELATIONS) + 1],
    )
    at_end = _cross_entropies(
        model.at_end(hidden[range(len(asks)), ends]),
        [one.at_end for one in wanted],
        [len(RELATIONS) + 1, len(BACKGROUNDS), *thing * MAX_OBJECTS],
    )
    at_padding = _cross_entropies(
        model.at_padding(hidden[:, -len(RELATIONS) :]).flatten(0, 1),
        [side for one in wanted for side in one.at_padding],
        thing,
    )
    return at_shape + at_end + at_padding


def loss_of(tokenizer, model: Probed, generator: torch.Generator) -> torch.Tensor:
    rng = np.random.default_rng(generator.initial_seed())
    asks = [sample_scene(rng).ask for _ in range(BATCH)]
    ids = token_ids(tokenizer, [ask.caption for ask in asks])
    return probe_loss(model, tokenizer, ids, model.encoder(ids).last_hidden_state, asks)


def _cross_entropies(
    logits: torch.Tensor, classes: list[list[int]], sizes: list[int]
) -> torch.Tensor:
    """Mean over the probes, each of `sizes` classes; logits [words, sum(sizes)]."""
    wanted = torch.tensor(classes)
    parts = logits.split(sizes, -1)
    return sum(F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts)) / len(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    for name, tokenizer, build in (("clip", clip, build_clip), ("t5", t5, build_t5)):
        torch.manual_seed(CONFIG.seed)
        folder = arguments.out / name
        model = Probed(build(len(tokenizer)))
        average = train(
            model,
            lambda model, step, generator, tokenizer=tokenizer: loss_of(
                tokenizer, model, generator
            ),
            folder,
            CONFIG,
        )
        average.encoder.save_pretrained(folder / "encoder")
        tokenizer.save_pretrained(folder / "tokenizer")


if __name__ == "__main__":
    main()
