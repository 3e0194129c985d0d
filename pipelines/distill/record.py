"""What a pipeline tells its denoiser about a prompt, read from the calls of its first step.

No pipeline's text encoding is repeated here: embeddings, sizes, positions and guidance are taken as
they reach the denoiser. Both forms of classifier-free guidance are known: one call with the empty
prompts in front (Stable Diffusion), and a second call for them (Flux).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...attn_processors.layouts import family_of

__all__ = ["EMPTY", "SHARED", "Conditions", "arguments_of", "recorded", "sample_name"]

# arguments without a batch dimension: positions, the same for all pictures of a size
SHARED = ("img_ids", "txt_ids")
EMPTY = "empty."  # prefix of what belongs to the empty prompt
Conditions = dict[str, torch.Tensor]


def sample_name(model: nn.Module) -> str:
    """The argument of forward that holds the noisy latents: the first."""
    return tuple(inspect.signature(type(model).forward).parameters)[1]


class Recorder:
    """Forward pre-hook: keeps the tensors of every call of the first timestep."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[tuple[int, Conditions]] = []
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._timestep_name = family_of(model).timestep
        self._first: float | None = None

    def __call__(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        timestep = float(torch.as_tensor(arguments.pop(self._timestep_name)).flatten()[0])
        if self._first is None:
            self._first = timestep
        if timestep == self._first:
            sample = arguments.pop(self._names[0])
            self.calls.append((len(sample), dict(_tensors(arguments))))

    def conditions(self, number: int) -> Conditions:
        """Of `number` prompts, and of the empty one where the pipeline was guided by it."""
        (size, first), *rest = self.calls
        if size == 2 * number:
            return _halves(first, number)
        if size != number:
            raise NotImplementedError(
                f"the pipeline called its denoiser with {size} latents for {number} prompts; "
                f"{number} or {2 * number} are understood"
            )
        empty = _own(rest[0][1]) if rest else {}
        return first | {EMPTY + name: tensor[:1] for name, tensor in empty.items()}


@contextmanager
def recorded(model: nn.Module) -> Iterator[Recorder]:
    """Record the calls of the pipeline that runs inside the block."""
    recorder = Recorder(model)
    hook = model.register_forward_pre_hook(recorder, with_kwargs=True)
    try:
        yield recorder
    finally:
        hook.remove()


def arguments_of(conditions: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of forward again: a name "a.b" is entry b of the dictionary a."""
    arguments: dict[str, Any] = {}
    for name, tensor in conditions.items():
        outer, _, inner = name.partition(".")
        if inner:
            arguments.setdefault(outer, {})[inner] = tensor
        else:
            arguments[name] = tensor
    return arguments


def _tensors(arguments: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{k}", v) for k, v in _tensors(value))


def _own(conditions: Conditions) -> Conditions:
    """Without what all pictures share."""
    return {name: tensor for name, tensor in conditions.items() if name not in SHARED}


def _halves(both: Conditions, number: int) -> Conditions:
    own = _own(both)
    shared = {name: both[name] for name in SHARED if name in both}
    empty = {EMPTY + name: tensor[:1] for name, tensor in own.items()}
    return shared | {name: tensor[number:] for name, tensor in own.items()} | empty


def check_batched(conditions: Conditions, number: int, names: Sequence[str] = SHARED) -> None:
    """Raise where an argument is neither one a picture nor one of `names`."""
    for name, tensor in conditions.items():
        if name in names or name.startswith(EMPTY) or tensor.shape[:1] == (number,):
            continue
        raise NotImplementedError(
            f"the denoiser's argument {name} is {tuple(tensor.shape)} for {number} pictures"
        )
