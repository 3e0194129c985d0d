"""Word-level tokenizers of the caption vocabulary, in the classes the stock pipelines expect."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from ..scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES

__all__ = ["TEXT_LENGTH", "WORDS", "clip_tokenizer", "t5_tokenizer", "token_ids"]

TEXT_LENGTH = 32  # tokens; the longest caption of three objects has 18
MOTION_WORDS = ("moving", "up", "down", "still")  # for the video model on top of shapes-sd
WORDS = tuple(
    dict.fromkeys(
        [*COLOURS, *SHAPES, *BACKGROUNDS, "a", "and", "on", "background", "the", "of"]
        + [word for relation in RELATIONS for word in relation.split()]
        + [*MOTION_WORDS]
    )
)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair merges that join every word of the vocabulary into one token; others are spelt."""
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=list(string.ascii_lowercase),
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator([" ".join(WORDS)], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = string.ascii_lowercase + string.digits + ".,!-'"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    tokens += ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=TEXT_LENGTH,
    )


def t5_tokenizer() -> T5Tokenizer:
    """Unigram pieces: every word of the vocabulary is one piece, letters spell the rest."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    vocab += [("\u2581" + word, -2.0) for word in WORDS]
    vocab += [(letter, -8.0) for letter in string.ascii_lowercase + string.digits + ".,!-'"]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TEXT_LENGTH)


def token_ids(tokenizer, captions: Sequence[str], length: int = TEXT_LENGTH) -> torch.Tensor:
    """Token ids of the captions, padded to `length`, [B, T]."""
    return tokenizer(
        list(captions), padding="max_length", max_length=length, return_tensors="pt"
    ).input_ids
