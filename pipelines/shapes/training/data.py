"""Captioned latents for training: scenes drawn and encoded once; some captions never shown."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from tqdm import trange

from ..clips import ShapesClip, render_clip, sample_clip
from ..render import render
from ..scene import MOTIONS, Ask, ShapesScene, sample_scene

__all__ = [
    "LatentSet",
    "clip_set",
    "held_out_asks",
    "held_out_clip_asks",
    "is_held_out",
    "latent_set",
]

CHUNK = 100
# half the scenes of this size show their relation at fixed places, half the clips their motion on
# fixed paths: in free scenes the relation explains 1 % of the loss of the noisiest steps, too
# little to be noticed among colours
PLACED_SIDE = 32  # pixels
PLACED_RADIUS = 0.2
OFFSETS = {"left of": (-0.25, 0), "right of": (0.25, 0), "above": (0, -0.25), "below": (0, 0.25)}


@dataclass(frozen=True, slots=True)
class LatentSet:
    """Latents in float16 and their captions.

    latents: [number, 4, side / 4, side / 4], of clips [number, 4, frames, side / 4, side / 4].
    """

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


def held_out_clip_asks(number: int, seed: int) -> list[Ask]:
    """`number` unseen asks of an object that moves."""
    rng = np.random.default_rng(seed)
    asks: list[Ask] = []
    while len(asks) < number:
        ask = sample_clip(rng).ask
        if is_held_out(ask) and ask.motions:
            asks.append(ask)
    return asks


def latent_set(vae: AutoencoderTiny, side: int, number: int, seed: int, folder: Path) -> LatentSet:
    """`number` training scenes of `side` pixels, encoded; read from `folder` when made before."""
    return _made_once(
        folder / f"latents-{side}-{number}-{seed}.pt", _encode, vae, side, number, seed
    )


def clip_set(vae: AutoencoderTiny, side: int, number: int, seed: int, folder: Path) -> LatentSet:
    """The same of clips."""
    path = folder / f"clips-{side}-{number}-{seed}.pt"
    return _made_once(path, _encode_clips, vae, side, number, seed)


def _made_once(path: Path, encode, vae: AutoencoderTiny, side: int, number: int, seed: int):
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(encode(vae, side, number, seed), path)
    saved = torch.load(path, weights_only=True)
    return LatentSet(saved["latents"], saved["captions"])


def _encode(vae: AutoencoderTiny, side: int, number: int, seed: int) -> dict:
    rng = np.random.default_rng((seed, side))
    latents, captions = [], []
    for _ in trange(number // CHUNK, desc=f"encode {side} px"):
        scenes = [
            _training_scene(rng, placed=side == PLACED_SIDE and i % 2 == 0) for i in range(CHUNK)
        ]
        latents.append(_latents(vae, np.stack([render(scene, side, side) for scene in scenes])))
        captions += [scene.caption for scene in scenes]
    return {"latents": torch.cat(latents), "captions": captions}


def _encode_clips(vae: AutoencoderTiny, side: int, number: int, seed: int) -> dict:
    rng = np.random.default_rng((seed, side))
    latents, captions = [], []
    for i in trange(number, desc=f"encode clips of {side} px"):
        clip = _training_clip(rng, placed=side == PLACED_SIDE and i % 2 == 0)
        latents.append(_latents(vae, render_clip(clip, side, side)).transpose(0, 1))
        captions.append(clip.caption)
    return {"latents": torch.stack(latents), "captions": captions}


@torch.no_grad()
def _latents(vae: AutoencoderTiny, pictures: np.ndarray) -> torch.Tensor:
    """[number, 4, side / 4, side / 4] in float16 of pictures [number, side, side, 3] in 0..1."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
    return vae.encode(pixels).latents.half()


def _training_clip(rng: np.random.Generator, placed: bool) -> ShapesClip:
    while True:
        clip = sample_clip(rng)
        if not is_held_out(clip.ask):
            return place_clip(clip) if placed and clip.ask.motions else clip


def place_clip(clip: ShapesClip) -> ShapesClip:
    """A large object on a path through the middle: the motion alone says where it is when."""
    dx, dy = MOTIONS[clip.ask.motions[0]]
    thing = replace(clip.scene.objects[0], x=0.5 - dx / 4, y=0.5 - dy / 4, radius=PLACED_RADIUS)
    return ShapesClip(replace(clip.scene, objects=(thing,)), ((dx / 2, dy / 2),))


def _training_scene(rng: np.random.Generator, placed: bool) -> ShapesScene:
    while True:
        scene = sample_scene(rng)
        if placed and scene.relation is not None:
            scene = place(scene)
        if not is_held_out(scene.ask):
            return scene


def place(scene: ShapesScene) -> ShapesScene:
    """Two related objects, large and opposite each other: the relation alone says where."""
    first, second = scene.objects[:2]
    dx, dy = OFFSETS[scene.relation]
    return replace(
        scene,
        objects=(
            replace(first, x=0.5 + dx, y=0.5 + dy, radius=PLACED_RADIUS),
            replace(second, x=0.5 - dx, y=0.5 - dy, radius=PLACED_RADIUS),
        ),
    )
