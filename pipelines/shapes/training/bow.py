"""Train `shapes-sd-bow`: `shapes-sd` with a text encoder that is a bag of words.

No position embeddings, no layer of self-attention: the state of a token is its embedding, so
"red circle, blue square" and "blue circle, red square" say the same. The convolutions of the UNet
stay those of `shapes-sd`; its transformer blocks and the embeddings learn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..load import load_shapes
from ..scene import sample_scene
from .tokenizers import token_ids
from .unet import MORE, MORE_CONFIG, fit

__all__ = ["bag_of_words", "main"]

CONFIG = replace(MORE_CONFIG, steps=4000)
TRAINED = "transformer_blocks"  # what the names of the UNet's parameters that learn hold
CAPTIONS = 2000  # read once for where the embeddings start


class Bag(nn.Module):
    """The text part that is trained: an encoder without probes."""

    def __init__(self, encoder: CLIPTextModel):
        super().__init__()
        self.encoder = encoder


@torch.no_grad()
def bag_of_words(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """A CLIPTextModel that embeds each token alone.

    A token starts at its mean state in `encoder` over random captions, which the UNet knows;
    one that no caption holds keeps its embedding.
    """
    config = CLIPTextConfig(**{**encoder.config.to_dict(), "num_hidden_layers": 0})
    bag = CLIPTextModel(config).eval()
    bag.embeddings.position_embedding.weight.zero_().requires_grad_(False)
    bag.final_layer_norm.load_state_dict(encoder.final_layer_norm.state_dict())
    rng = np.random.default_rng(seed)
    ids = token_ids(tokenizer, [sample_scene(rng).caption for _ in range(CAPTIONS)])
    norm = bag.final_layer_norm
    states = (encoder(ids).last_hidden_state - norm.bias) / norm.weight  # [B, T, width]
    table = encoder.embeddings.token_embedding.weight.clone()
    for token in ids.unique():
        table[token] = states[ids == token].mean(0)
    bag.embeddings.token_embedding.weight.copy_(table)
    return bag


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/sd-bow"))
    parser.add_argument("--more", type=int, help="steps to go on from the shipped weights")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(CONFIG.seed)
    if arguments.more is None:
        pipe, config = load_shapes("sd"), CONFIG
        encoder = bag_of_words(pipe.text_encoder, pipe.tokenizer, CONFIG.seed)
    else:
        # another seed: other batches than the first run's
        pipe, config = load_shapes("sd-bow"), replace(CONFIG, steps=arguments.more, seed=1)
        encoder = pipe.text_encoder
        encoder.embeddings.position_embedding.weight.requires_grad_(False)
    for name, parameter in pipe.unet.named_parameters():
        parameter.requires_grad_(TRAINED in name)
    fit(pipe, Bag(encoder), arguments.out, config, MORE)


if __name__ == "__main__":
    main()
