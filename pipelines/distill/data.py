"""Pictures to train on: drawn by the teacher itself, kept on disk, dealt out by number.

Self-generated pictures teach better than photographs (CLEAR, arXiv:2412.16112, section 4): what the
student sees is what the teacher would draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ...attn_processors.fingerprint import fingerprint
from .config import DistillConfig
from .record import EMPTY, SHARED, Conditions, check_batched, recorded

__all__ = ["Pictures", "data_folder", "draw_pictures"]

_LATENTS = "latents"
# diffusers' defaults for Stable Diffusion 3
_LOGIT_MEAN, _LOGIT_STD, _MODE_SCALE = 0.0, 1.0, 1.29


def data_folder(
    model: nn.Module, prompts: Sequence[str], config: DistillConfig, call: Mapping[str, object]
) -> Path:
    """Where these pictures lie: a folder for each teacher, set of prompts and way to draw them."""
    key = {
        "base": fingerprint(model),
        "prompts": list(prompts),
        "steps": config.picture_steps,
        "batch": config.picture_batch,
        "seed": config.seed,
        "call": dict(call),
    }
    root = Path(config.out) / "data" if config.data is None else Path(config.data)
    return root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


@torch.no_grad()
def draw_pictures(
    pipe: DiffusionPipeline,
    model: nn.Module,
    prompts: Sequence[str],
    config: DistillConfig,
    call: Mapping[str, object],
    folder: Path,
    *,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Draw what is not yet in `folder`, every `world`-th file; picture i comes from seed + i."""
    folder.mkdir(parents=True, exist_ok=True)
    # dealt out before looking: another process may have drawn some by then
    own = range(0, len(prompts), config.picture_batch)[rank::world]
    missing = [start for start in own if not _file(folder, start).exists()]
    for start in tqdm(missing, desc="draw", disable=rank > 0, mininterval=1):
        part = list(prompts[start : start + config.picture_batch])
        tensors = _draw(pipe, model, part, config, call, start)
        unfinished = folder / f"unfinished-{start}"
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, unfinished)
        unfinished.rename(_file(folder, start))
    if rank == 0:
        (folder / "prompts.json").write_text(json.dumps(list(prompts), indent=0) + "\n")


def _file(folder: Path, start: int) -> Path:
    return folder / f"pictures-{start:07d}.safetensors"


def _draw(pipe, model, prompts, config, call, start) -> Conditions:
    """Latents and conditions of some prompts."""
    number = len(prompts)
    options = dict(call)
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * number
    seeds = (config.seed + start + i for i in range(number))
    with recorded(model) as recorder:
        latents = pipe(
            prompts,
            num_inference_steps=config.picture_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
            **options,
        ).images
    conditions = recorder.conditions(number)
    check_batched(conditions, number)
    return {_LATENTS: latents, **conditions}


class Pictures(Dataset):
    """Training samples by number: sample n is the same whoever asks for it, and whenever.

    A sample holds latents, noise, a place u in the schedule (0 the noisiest) and the conditions of
    its picture, or of the empty prompt in a share `caption_dropout`. `first` and `last` are numbers
    of samples.
    """

    def __init__(self, folder: Path, config: DistillConfig, first: int, last: int) -> None:
        paths = sorted(folder.glob("pictures-*.safetensors"))
        self._files = [safe_open(path, "pt") for path in paths]
        self._places = [
            (file, i)
            for file in self._files
            for i in range(file.get_slice(_LATENTS).get_shape()[0])
        ]
        self._config = config
        self._first, self._last = first, last
        names = self._files[0].keys()
        self._own = [n for n in names if n not in SHARED and not n.startswith(EMPTY)]
        self._has_empty = any(name.startswith(EMPTY) for name in names)
        if config.caption_dropout and not self._has_empty:
            raise ValueError(
                "caption_dropout needs the empty prompt, which the pipeline was not guided by; "
                "give a guidance_scale above 1 or caption_dropout=0"
            )

    def shared(self) -> Conditions:
        """What all pictures have in common."""
        file = self._files[0]
        return {name: file.get_tensor(name) for name in file.keys() if name in SHARED}  # noqa: SIM118

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number = self._first + index
        generator = torch.Generator().manual_seed(self._config.seed * 1_000_003 + number)
        place = int(torch.randint(len(self._places), (), generator=generator))
        dropped = float(torch.rand((), generator=generator)) < self._config.caption_dropout
        file, i = self._places[place]
        sample = {name: file.get_slice(name)[i : i + 1][0] for name in self._own}
        if dropped:
            sample |= {n: file.get_tensor(EMPTY + n)[0] for n in self._own if n != _LATENTS}
        noise = torch.randn(sample[_LATENTS].shape, generator=generator)
        u = compute_density_for_timestep_sampling(
            self._config.density, 1, _LOGIT_MEAN, _LOGIT_STD, _MODE_SCALE, generator=generator
        )
        return {**sample, "noise": noise, "u": u[0]}
