"""Captioned latents for training: scenes drawn and encoded once; some captions never shown."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from tqdm import trange

from ..render import render
from ..scene import Ask, ShapesScene, sample_scene

__all__ = ["LatentSet", "held_out_asks", "is_held_out", "latent_set"]

CHUNK = 100


@dataclass(frozen=True, slots=True)
class LatentSet:
    """Latents [number, 4, side / 4, side / 4] in float16 and their captions."""

    latents: torch.Tensor
    captions: list[str]

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
        index = torch.randint(len(self.captions), (size,), generator=generator)
        return self.latents[index].float(), [self.captions[i] for i in index]


def is_held_out(ask: Ask) -> bool:
    """One caption in ten, by its checksum, is kept for evaluation and never trained on."""
    return zlib.crc32(ask.caption.encode()) % 10 == 0


def held_out_asks(number: int, num_objects: int, seed: int) -> list[Ask]:
    """`number` unseen asks of `num_objects` objects, related where there are two or more."""
    rng = np.random.default_rng(seed)
    asks: list[Ask] = []
    while len(asks) < number:
        ask = sample_scene(rng, num_objects).ask
        if is_held_out(ask) and (num_objects == 1 or ask.relation is not None):
            asks.append(ask)
    return asks


def latent_set(vae: AutoencoderTiny, side: int, number: int, seed: int, folder: Path) -> LatentSet:
    """`number` training scenes of `side` pixels, encoded; read from `folder` when made before."""
    path = folder / f"latents-{side}-{number}-{seed}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(_encode(vae, side, number, seed), path)
    saved = torch.load(path, weights_only=True)
    return LatentSet(saved["latents"], saved["captions"])


@torch.no_grad()
def _encode(vae: AutoencoderTiny, side: int, number: int, seed: int) -> dict:
    rng = np.random.default_rng((seed, side))
    latents, captions = [], []
    for _ in trange(number // CHUNK, desc=f"encode {side} px"):
        scenes = [_training_scene(rng) for _ in range(CHUNK)]
        drawn = np.stack([render(scene, side, side) for scene in scenes])
        pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
        latents.append(vae.encode(pixels).latents.half())
        captions += [scene.caption for scene in scenes]
    return {"latents": torch.cat(latents), "captions": captions}


def _training_scene(rng: np.random.Generator) -> ShapesScene:
    while True:
        scene = sample_scene(rng)
        if not is_held_out(scene.ask):
            return scene
