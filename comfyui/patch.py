"""Puts what the nodes ask for into a clone of a ComfyUI model, and finds them again.

ComfyUI reads one `optimized_attention_override` from the options of a forward. Ours goes in when
the forward begins, on top of what any node has put there, and into a copy of the options: nothing
is left behind, and nodes that came later are not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from .broadcast import Broadcast, Turn
from .call import AttentionCall
from .families import Geometry, family_of, read_geometry
from .features import Feature, Features
from .maps import MapReader
from .override import Forward, Override, Reading
from .record import Recorder, logger
from .regions import KEY as REGIONS
from .settings import Settings
from .steps import Steps, read_steps

__all__ = ["FoveatePatch", "find_patch", "install"]

_KEY = "foveate"
_SLOT = "optimized_attention_override"
# the values of comfy.patcher_extension.WrappersMP, so that this file does without ComfyUI
_APPLY_MODEL, _PREDICT_NOISE, _OUTER_SAMPLE = "apply_model", "predict_noise", "outer_sample"


class ModelPatcher(Protocol):
    """The part of ComfyUI's class of this name that is used here."""

    def clone(self) -> ModelPatcher: ...
    def get_wrappers(self, wrapper_type: str, key: str) -> list[Callable]: ...
    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None: ...
    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Callable) -> None: ...


def install(model: ModelPatcher, feature: Feature) -> ModelPatcher:
    """A clone of `model` that does what a node asks for too; `model` stays as it is.

    What earlier nodes asked for stays. Raises ValueError where the two contradict. None asks for
    nothing but to know the regions of a conditioning.
    """
    earlier = find_patch(model)
    features = Features() if earlier is None else earlier.features
    patch, patched = FoveatePatch(features.joined(feature)), model.clone()
    wrappers = {
        _APPLY_MODEL: patch.apply_model,
        _PREDICT_NOISE: patch.predict_noise,
        _OUTER_SAMPLE: patch.outer_sample,
    }
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, _KEY)
        patched.add_wrapper_with_key(kind, _KEY, wrapper)
    return patched


def find_patch(model: ModelPatcher) -> FoveatePatch | None:
    """What `install` has put on a model, if it has."""
    wrappers = model.get_wrappers(_APPLY_MODEL, _KEY)
    return wrappers[0].__self__ if wrappers else None


class FoveatePatch:
    """Wrappers of ComfyUI's sampling that share what the nodes ask for, and the records.

    The signatures are ComfyUI's, open at the end: models pass arguments of their own.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.recorder = Recorder()
        self.broadcast = None if features.broadcast is None else Broadcast(features.broadcast)
        self.maps = None if features.phrases is None else MapReader(features.phrases)
        self._key_counts = {}
        self._sigmas: tuple[object, list[float]] = (None, [])

    def report(self) -> str:
        """What ran, layer by layer, in the last sampling."""
        others = [part for part in (self.broadcast, self.maps) if part is not None]
        return self.recorder.text(self.features.rules, [x for part in others for x in part.lines()])

    def outer_sample(self, executor: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around one sampling."""
        self.recorder.begin()
        if self.broadcast is not None:
            self.broadcast.begin(_name_of_sampler(args, kwargs))
        if self.maps is not None:
            self.maps.begin()
        try:
            return executor(*args, **kwargs)
        finally:
            self._sigmas = (None, [])
            if self.broadcast is not None:
                self.broadcast.end()
            if any(rule.verbose for rule in self.features.rules):
                logger.info("%s", self.report())

    def predict_noise(self, executor: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around one evaluation: the forwards of all prompts at one noise level."""
        if self.broadcast is not None:
            self.broadcast.evaluate()
        return executor(*args, **kwargs)

    def apply_model(
        self,
        executor: Callable,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None = None,
        c_crossattn: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> torch.Tensor:
        """Around one forward of the model, with our override in its options."""
        options = {} if transformer_options is None else dict(transformer_options)
        base = executor.class_obj
        # a compiled model is a wrapper of the module
        model = getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)
        layouts, geometry = family_of(model), None
        self.recorder.model = type(model).__name__
        self.recorder.forwards += 1
        if layouts is None:
            layouts = _no_layout(self.recorder.model)
        else:
            geometry = read_geometry(model, x, c_crossattn, conds.get("ref_latents") or [])
        sigma, steps = float(t.max()), self._steps(options, t)
        turn = self._turn(options, x, t, steps, base.model_sampling)
        forward = Forward(
            layouts=layouts,
            geometry=geometry,
            rule=self._active(base.model_sampling, sigma),
            previous=options.get(_SLOT),
            turn=turn,
            regions=conds.pop(REGIONS, None),
            reading=self._reading(options, x, steps),
        )
        options[_SLOT] = Override(forward, self.recorder, self._key_counts)
        out = executor(x, t, c_concat, c_crossattn, control, options, **conds)
        if turn is not None:
            turn.settle()
        return out

    def _active(self, model_sampling: Any, sigma: float) -> Settings | None:
        """The settings whose steps `sigma` belongs to: from their start, before their end."""
        for rule in self.features.rules:
            start = model_sampling.percent_to_sigma(rule.start_percent)
            end = model_sampling.percent_to_sigma(rule.end_percent)
            if float(end) < sigma <= float(start):
                return rule
        return None

    def _steps(self, options: dict[str, Any], t: torch.Tensor) -> Steps | None:
        """Where the sampling is, for those who ask."""
        sigmas = options.get("sample_sigmas")
        if sigmas is None or (self.broadcast is None and self.maps is None):
            return None
        if self._sigmas[0] is not sigmas:
            self._sigmas = (sigmas, sigmas.tolist())
        return read_steps(self._sigmas[1], float(t.max()))

    def _turn(
        self,
        options: dict[str, Any],
        x: torch.Tensor,
        t: torch.Tensor,
        steps: Steps | None,
        model_sampling: Any,
    ) -> Turn | None:
        if self.broadcast is None:
            return None
        timestep = float(model_sampling.timestep(t).max())
        return self.broadcast.turn(options, x, steps, timestep)

    def _reading(
        self, options: dict[str, Any], x: torch.Tensor, steps: Steps | None
    ) -> Reading | None:
        rows = None if self.maps is None else self.maps.rows(options, len(x), steps)
        return Reading(self.maps, rows, steps.progress) if rows else None


def _name_of_sampler(args: tuple, kwargs: dict[str, Any]) -> str:
    """The name of the sampler's function, "" where it has none."""
    sampler = args[2] if len(args) > 2 else kwargs.get("sampler")
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def _no_layout(model: str) -> Callable[[AttentionCall, Geometry | None], str]:
    """Stands for the row of a model that has none."""
    return lambda call, geometry: (
        f"{model} is not in the layout table; a row in comfyui/families.py adds a model"
    )
