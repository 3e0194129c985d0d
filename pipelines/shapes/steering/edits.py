"""Prompt-to-prompt on two objects: the colour of one is swapped for another in the prompt.

EDITED  1 when an object of the new colour is there with the shape asked, else 0
KEPT    share of the source's objects that are found again, with the colour the edit gives them, the
        same shape, and a centre within 0.05 of the sides
PSNR    in dB, outside of the objects of the old colour and of the new
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from diffusers import DiffusionPipeline
from scipy import ndimage

from ....attn_processors.modulation import (
    AttentionRefine,
    AttentionReplace,
    Modulation,
    Scene,
    SelfAttentionReplace,
    modulate,
)
from ..load import MODELS
from ..metrics import score
from ..reader import FoundObject, Trace, trace
from ..scene import COLOURS, Ask
from .prompts import Prompt

__all__ = ["ALONE", "EDIT_COLUMNS", "draw_edit", "edit_rows", "edits_of"]

EDIT_COLUMNS = ("edited", "kept", "psnr")
ALONE = "the edited prompt alone"
_SEED = 1_100
_NEAR = 0.05
_RIM = 2  # pixels around an object whose colours are mixed


def _replace(source: Ask, edited: Scene) -> Modulation:
    return AttentionReplace(source.caption, edited).where(steps=(0, 0.8))


def _refine(source: Ask, edited: Scene) -> Modulation:
    return AttentionRefine(source.caption, edited).where(steps=(0, 0.8))


def _layout(source: Ask, edited: Scene) -> Modulation:
    return SelfAttentionReplace(source.caption, edited).where(steps=(0, 0.4))


EDITS: dict[str, Sequence[Callable[[Ask, Scene], Modulation]]] = {
    ALONE: (),
    "AttentionReplace": (_replace,),
    "AttentionRefine": (_refine,),
    "SelfAttentionReplace": (_layout,),
    "AttentionReplace + SelfAttentionReplace": (_replace, _layout),
}


def edits_of(model: str) -> list[str]:
    """The names of the edits that an embedded model has the layers for."""
    return [] if model == "flux" else list(EDITS)


def draw_edit(
    pipe: DiffusionPipeline, name: str, edit: str, prompt: Prompt, number: int, steps: int
) -> np.ndarray:
    """The pictures of a prompt and of its edit, [2, height, width, 3], from the same noise."""
    asks = (prompt.ask, _edited(prompt.ask, number))
    scene = Scene(asks[1].caption, phrases=[asks[1].objects[0][0]])
    active = [make(prompt.ask, scene) for make in EDITS[edit]]
    pipe.set_progress_bar_config(disable=True)
    with modulate(pipe, active) if active else nullcontext():
        return pipe(
            [ask.caption for ask in asks],
            height=64,
            width=64,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(_SEED + number) for _ in asks],
            output_type="np",
            **MODELS[name].call,
        ).images


def edit_rows(
    pipe: DiffusionPipeline, name: str, asked: Sequence[Prompt], steps: int
) -> dict[str, list[dict[str, float]]]:
    """Edit -> its rows, of the prompts whose own picture shows both objects."""
    rows: dict[str, list[dict[str, float]]] = {edit: [] for edit in EDITS}
    for number, prompt in enumerate(asked):
        with torch.autocast("cpu", torch.bfloat16):
            pairs = {edit: draw_edit(pipe, name, edit, prompt, number, steps) for edit in EDITS}
        source = pairs[ALONE][0]
        if score(source, prompt.ask).bind:
            for edit, pictures in pairs.items():
                ask = _edited(prompt.ask, number)
                rows[edit].append(_row(source, pictures[1], prompt.ask, ask))
    return rows


def _edited(ask: Ask, number: int) -> Ask:
    """The first object in a colour that the prompt has not."""
    (old, shape), *others = ask.objects
    free = [colour for colour in COLOURS if colour not in {old, *(c for c, _ in others)}]
    return replace(ask, objects=((free[number % len(free)], shape), *others))


def _row(before: np.ndarray, after: np.ndarray, ask: Ask, edited: Ask) -> dict[str, float]:
    source, found = trace(before), trace(after)
    (old, _), (new, shape) = ask.objects[0], edited.objects[0]
    wanted = [
        replace(thing, colour=new if thing.colour == old else thing.colour)
        for thing in source.reading.objects
    ]
    things = found.reading.objects
    changed = _region(source, old) | _region(found, new)
    error = np.square(before - after).mean(-1)[~changed].mean()
    return {
        "edited": int(any((thing.colour, thing.shape) == (new, shape) for thing in things)),
        "kept": float(np.mean([any(_is_there(one, thing) for thing in things) for one in wanted])),
        "psnr": float(-10 * np.log10(max(error, 1e-12))),
    }


def _is_there(wanted: FoundObject, thing: FoundObject) -> bool:
    is_near = max(abs(wanted.x - thing.x), abs(wanted.y - thing.y)) <= _NEAR
    return is_near and (wanted.colour, wanted.shape) == (thing.colour, thing.shape)


def _region(seen: Trace, colour: str) -> np.ndarray:
    """Pixels of the objects of a colour, and around them."""
    region = np.zeros(seen.labels.shape, bool)
    for thing, own in zip(seen.reading.objects, seen.regions, strict=False):
        if thing.colour == colour:
            region |= own
    return ndimage.binary_dilation(region, iterations=_RIM)
