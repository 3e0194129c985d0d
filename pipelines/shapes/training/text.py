"""Teach the text encoders the caption grammar before any picture is drawn.

Each shape word must know its colour and its place in the relation, and the end token the whole
caption: linear probes on the hidden states are trained together with the encoder and then thrown
away. It takes minutes and spares the denoiser the slowest part of its training, binding a colour
to its shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    """An encoder with linear probes: its attributes at each shape word, everything at the end."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.at_shape = nn.Linear(WIDTH, len(COLOURS) + len(SHAPES) + len(RELATIONS) + 1)
        slots = MAX_OBJECTS * (len(COLOURS) + len(SHAPES) + 2) + len(RELATIONS) + 1
        self.at_end = nn.Linear(WIDTH, slots + len(BACKGROUNDS))


def targets(ask: Ask) -> tuple[list[list[int]], list[int]]:
    """Class indices at the shape words (colour, shape, relation) and at the end token."""
    colours, relation = list(COLOURS), _relation_index(ask)
    at_shape = [
        [colours.index(c), SHAPES.index(s), relation if i < 2 else len(RELATIONS)]
        for i, (c, s) in enumerate(ask.objects)
    ]
    at_end = [relation, list(BACKGROUNDS).index(ask.background)]
    for i in range(MAX_OBJECTS):
        known = i < len(at_shape)
        at_end += at_shape[i][:2] if known else [len(COLOURS), len(SHAPES)]
    return at_shape, at_end


def probe_loss(
    model: Probed, tokenizer, ids: torch.Tensor, hidden: torch.Tensor, asks: Sequence[Ask]
) -> torch.Tensor:
    """Cross-entropy of the probes on the hidden states [B, T, width] of `ids` [B, T]."""
    shape_ids = torch.tensor([tokenizer(shape).input_ids[-2] for shape in SHAPES])
    rows, columns = torch.isin(ids, shape_ids).nonzero(as_tuple=True)
    ends = (ids == tokenizer.eos_token_id).int().argmax(1)
    wanted = [targets(ask) for ask in asks]
    at_shape = torch.tensor([row for words, _ in wanted for row in words])
    at_end = torch.tensor([end for _, end in wanted])
    sizes = [len(COLOURS), len(SHAPES), len(RELATIONS) + 1]
    loss = _cross_entropies(model.at_shape(hidden[rows, columns]), at_shape, sizes)
    sizes = [len(RELATIONS) + 1, len(BACKGROUNDS)]
    sizes += [len(COLOURS) + 1, len(SHAPES) + 1] * MAX_OBJECTS
    return loss + _cross_entropies(model.at_end(hidden[range(len(asks)), ends]), at_end, sizes)


def loss_of(tokenizer, model: Probed, generator: torch.Generator) -> torch.Tensor:
    rng = np.random.default_rng(generator.initial_seed())
    asks = [sample_scene(rng).ask for _ in range(BATCH)]
    ids = token_ids(tokenizer, [ask.caption for ask in asks])
    return probe_loss(model, tokenizer, ids, model.encoder(ids).last_hidden_state, asks)


def _cross_entropies(logits: torch.Tensor, classes: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    parts = logits.split(sizes, -1)
    return sum(F.cross_entropy(part, classes[:, i]) for i, part in enumerate(parts)) / len(sizes)


def _relation_index(ask: Ask) -> int:
    return len(RELATIONS) if ask.relation is None else RELATIONS.index(ask.relation)


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
