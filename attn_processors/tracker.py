"""Where a denoiser is: the token layouts of the present forward and its place in the schedule.

Read at every forward, by a pre-hook on the model, from the arguments of the model's own `forward`;
calls are never counted, so skipped, repeated or interrupted steps cannot put it out.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..kernels.layout import TokenLayout
from ..kernels.schedule import is_within
from ..kernels.sequence import Exchange, Shard
from .layouts import Family
from .padding import Padded, padded_layout
from .sequence import group_of, shards_of

__all__ = ["Tracker"]

_TRAINING_STEPS = 1000


class Tracker:
    """Forward pre-hook of one model; what it read stays on it.

    layouts: token count -> layout of the self-attention and joint calls of this forward. Where the
        tokens are split over ranks, the count is this rank's and the layout that of the whole call.
    shards: token count -> what this rank holds of the call; empty where nothing is split.
    exchange: how ranks give each other what they need, None where nothing is split.
    padded: token count -> what is no padding of the calls whose padded text the model masks.
    active: whether this forward lies in the window `steps`, fractions of the schedule from 0
        (noise) to 1.
    schedule: the scheduler's timesteps of this run, None without a pipeline.
    """

    def __init__(
        self, model: nn.Module, family: Family, pipe: object, steps: tuple[float, float] | None
    ) -> None:
        self.family = family
        self.steps = steps
        self.layouts: dict[int, TokenLayout] = {}
        self.shards: dict[int, Shard] = {}
        self.exchange: Exchange | None = None
        self.padded: dict[int, Padded] = {}
        self.active = True
        self.schedule: torch.Tensor | None = None
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._pipe = None if pipe is None else weakref.ref(pipe)
        # outlives the pipeline, as where `from_pipe` makes another one of the same parts
        self._scheduler: Any = getattr(pipe, "scheduler", None)
        self._key: tuple = ()
        self._sources: tuple[weakref.ref | None, ...] = ()
        self._timestep: Any = None

    # runs outside the graph of a compiled root module, so reading values here breaks no graph
    @torch.compiler.disable
    def __call__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        self.schedule = self._read_schedule()
        self._read_parallel(model)
        self._read_layouts(model, arguments)
        self._timestep = arguments.get(self.family.timestep)
        if self.steps is not None:
            self.active = is_within(self.progress(), self.steps)

    def _read_parallel(self, model: nn.Module) -> None:
        """Whether the tokens are split, which may begin after `apply`."""
        group = group_of(model)
        if group is (None if self.exchange is None else self.exchange.group):
            return
        self.exchange = None if group is None else Exchange(group)
        self._key = ()

    def _read_layouts(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        sources = [arguments.get(name) for name in self.family.sources]
        key = tuple(
            (name, _sizes(value))
            for name, value in arguments.items()
            if name != self.family.timestep
        )
        if key == self._key and _are_alive(self._sources, sources):
            return
        layouts = self.family.layouts(model, arguments)
        self.layouts = {layout.num_tokens: layout for layout in layouts}
        self.padded = self._read_padding(model, arguments, layouts)
        self.shards = {}
        if self.exchange is not None:
            self.shards = shards_of(layouts, self.exchange)
            self.layouts = {tokens: shard.layout for tokens, shard in self.shards.items()}
            self.padded = {}
        self._key = key
        self._sources = tuple(None if source is None else weakref.ref(source) for source in sources)

    def _read_padding(
        self, model: nn.Module, arguments: Mapping[str, Any], layouts: tuple[TokenLayout, ...]
    ) -> dict[int, Padded]:
        """Of the family's first layout, the one with the text."""
        if self.family.valid_text is None or not layouts:
            return {}
        valid_text = self.family.valid_text(model, arguments)
        if valid_text is None:
            return {}
        full = layouts[0]
        return {full.num_tokens: padded_layout(self.family, full, valid_text)}

    def _read_schedule(self) -> torch.Tensor | None:
        pipe = None if self._pipe is None else self._pipe()
        if pipe is not None:
            self._scheduler = getattr(pipe, "scheduler", None)
        return getattr(self._scheduler, "timesteps", None)

    def progress(self) -> float:
        """Place of this forward's timestep in the schedule, as a fraction: step i of n is i / n.

        Waits for the GPU where the timestep lies there.
        """
        timestep = torch.as_tensor(self._timestep).detach().float()
        timestep = timestep * self.family.timestep_scale + self.family.timestep_offset
        timestep = float(timestep.max())
        if self.schedule is None:
            return 1 - timestep / _TRAINING_STEPS
        # the nearest: half-precision models see a rounded timestep
        step = int((self.schedule.float() - timestep).abs().argmin())
        return step / len(self.schedule)

    def __getstate__(self) -> dict[str, Any]:
        # weak references and process groups do not pickle, and a scheduler would be no pipeline's:
        # such a tracker goes by the timestep alone
        left = {
            "_pipe": None,
            "_scheduler": None,
            "_sources": (),
            "_key": (),
            "_timestep": None,
            "exchange": None,
            "schedule": None,
        }
        return {**vars(self), **left}

    def __deepcopy__(self, memo: dict[int, Any]) -> Tracker:
        # a copied pipeline has its own schedule; memo knows the copy being made
        new = object.__new__(Tracker)
        memo[id(self)] = new
        vars(new).update(self.__getstate__())
        pipe = None if self._pipe is None else self._pipe()
        if pipe is not None:
            new._pipe = weakref.ref(memo.get(id(pipe), pipe))
        new._scheduler = memo.get(id(self._scheduler), self._scheduler)
        return new


def _sizes(value: Any) -> Any:
    """What a layout may depend on: shapes of tensors, integers, and both inside of lists."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(_sizes(item) for item in value)
    return value if isinstance(value, int) else None


def _are_alive(refs: tuple[weakref.ref | None, ...], sources: list[Any]) -> bool:
    """Whether the sources are the very objects that were read."""
    return len(refs) == len(sources) and all(
        source is None if ref is None else ref() is source
        for ref, source in zip(refs, sources, strict=True)
    )
