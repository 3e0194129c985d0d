"""One dense run with every layer's output written down on a sample of its tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ...attn_processors.broadcast.branches import Branch
from ...attn_processors.broadcast.curves import MAX_LAG
from ...attn_processors.broadcast.gate import Gate
from ...attn_processors.layouts import attention_layers
from ...kernels.broadcast import num_bytes

__all__ = ["WHOLE", "Recording", "layer_seconds"]

WHOLE = ""  # name of the model itself, as PyTorch has it

_TOKENS = 512


class Recording:
    """Observer of a controller: keeps {(layer, branch): {evaluation: sample}}."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, Branch], dict[int, torch.Tensor]] = {}
        self._chosen: dict[int, torch.Tensor] = {}
        self.num_bytes: dict[str, int] = {}

    def __call__(self, gate: Gate, branch: Branch, index: int) -> None:
        (output, *_) = (leaf.parts[0] for leaf in gate.kept if leaf is not None)
        kept = self._samples.setdefault((gate.name, branch), {})
        kept[index] = self._sample(output).float().cpu()
        whole = sum(num_bytes(leaf) for leaf in gate.kept if leaf is not None)
        self.num_bytes[gate.name] = whole // branch.latent[0][0]

    def _sample(self, output: torch.Tensor) -> torch.Tensor:
        """[B, at most 512 tokens, C]: always the same tokens of as many."""
        if output.dim() == 4:  # an image [B, C, h, w]
            output = output.flatten(2).transpose(1, 2)
        tokens = output.shape[1]
        if tokens not in self._chosen:
            generator = torch.Generator().manual_seed(tokens)
            self._chosen[tokens] = torch.randperm(tokens, generator=generator)[:_TOKENS]
        return output[:, self._chosen[tokens].to(output.device)]

    def errors(self, layer: str, timesteps: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Relative errors of reuse [n, G] and forecast [n, G, G + 1], means over the branches."""
        runs = [kept for (name, _), kept in self._samples.items() if name == layer]
        reuse = np.mean([_reuse(kept, len(timesteps)) for kept in runs], axis=0)
        return reuse, np.mean([_forecast(kept, timesteps) for kept in runs], axis=0)


def _relative(guess: torch.Tensor, exact: torch.Tensor) -> float:
    return float((guess - exact).abs().mean() / exact.abs().mean().clamp(min=1e-12))


def _reuse(kept: dict[int, torch.Tensor], n: int) -> np.ndarray:
    found = np.full((n, MAX_LAG), np.inf)
    for j in range(n):
        for lag in range(1, min(MAX_LAG, j) + 1):
            if j in kept and j - lag in kept:
                found[j, lag - 1] = _relative(kept[j - lag], kept[j])
    return found


def _forecast(kept: dict[int, torch.Tensor], timesteps: tuple[float, ...]) -> np.ndarray:
    n = len(timesteps)
    found = np.full((n, MAX_LAG, MAX_LAG + 1), np.inf)
    for j in range(n):
        for lag in range(1, MAX_LAG + 1):
            for gap in range(1, MAX_LAG + 2):
                i, older = j - lag, j - lag - gap
                if not {j, i, older} <= kept.keys() or timesteps[i] == timesteps[older]:
                    continue
                factor = (timesteps[j] - timesteps[i]) / (timesteps[i] - timesteps[older])
                guess = kept[i] + factor * (kept[i] - kept[older])
                found[j, lag - 1, gap - 1] = _relative(guess, kept[j])
    return found


@contextmanager
def layer_seconds(model: nn.Module) -> Iterator[Callable[[], dict[str, float]]]:
    """Within: the model and its attention layers are timed; yields {layer: median seconds}."""
    started: dict[str, float] = {}
    taken: dict[str, list[float]] = {}

    def begin(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            _synchronize()
            started[name] = time.perf_counter()

        return hook

    def end(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            _synchronize()
            taken.setdefault(name, []).append(time.perf_counter() - started[name])

        return hook

    hooks = []
    for name, module in {WHOLE: model, **attention_layers(model)}.items():
        hooks.append(module.register_forward_pre_hook(begin(name)))
        hooks.append(module.register_forward_hook(end(name)))
    try:
        yield lambda: {name: float(np.median(times)) for name, times in taken.items()}
    finally:
        for hook in hooks:
            hook.remove()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
