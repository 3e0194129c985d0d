"""One training loop for every embedded model: cosine decay, EMA, JSON-lines log, exact resume.

Products run in bfloat16, weights and sums in float32.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import trange

__all__ = ["TrainingConfig", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Length and pace of a training. Two runs with equal configs give equal weights."""

    steps: int
    learning_rate: float = 1e-3
    final_rate: float = 0.02  # last learning rate over the first
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    log_every: int = 50
    save_every: int = 200


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, int, torch.Generator], torch.Tensor],
    folder: Path,
    config: TrainingConfig,
    on_save: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Train `model` in place and return its EMA.

    `loss_of(model, step, generator)` gives the loss of one step; all its randomness comes from the
    generator, which is seeded by (seed, step), so that a resumed run continues as if never stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay
    )
    start = _resume(folder / "state.pt", model, average, optimizer)
    running, since = [], time.time()
    for step in trange(start, config.steps, initial=start, total=config.steps, mininterval=30):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, config)
        # plain matrix products: the fused attention's backward is slow in bfloat16 on a CPU
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(model, step, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        _follow(average, model, min(config.ema, (step + 1) / (step + 10)))
        running.append(loss.item())
        if (step + 1) % config.log_every == 0:
            _log(folder, step + 1, running, _rate(step, config), time.time() - since)
            running, since = [], time.time()
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            _save(folder, step + 1, model, average, optimizer, config)
            if on_save is not None:
                on_save(average, step + 1)
    return average


def _rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine decay to `final_rate`."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * share


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)


def _resume(path: Path, model: nn.Module, average: nn.Module, optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save(folder: Path, step: int, model, average, optimizer, config: TrainingConfig) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").rename(folder / "state.pt")
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")


def _log(folder: Path, step: int, losses: list[float], rate: float, seconds: float) -> None:
    row = {
        "step": step,
        "loss": round(sum(losses) / len(losses), 5),
        "rate": rate,
        "seconds_per_step": round(seconds / len(losses), 3),
    }
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
