"""Puts operators into a clone of a ComfyUI model, and finds them again.

ComfyUI reads one `optimized_attention_override` from the options of a forward. Ours goes in when
the forward begins, on top of what any node has put there, and into a copy of the options: nothing
is left behind, and nodes that came later are not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from .families import family_of, read_geometry
from .override import Override
from .record import Recorder, logger
from .settings import Settings, check_disjoint

__all__ = ["FoveatePatch", "find_patch", "install"]

_KEY = "foveate"
_SLOT = "optimized_attention_override"
# the values of comfy.patcher_extension.WrappersMP, so that this file does without ComfyUI
_APPLY_MODEL, _OUTER_SAMPLE = "apply_model", "outer_sample"


class ModelPatcher(Protocol):
    """The part of ComfyUI's class of this name that is used here."""

    def clone(self) -> ModelPatcher: ...
    def get_wrappers(self, wrapper_type: str, key: str) -> list[Callable]: ...
    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None: ...
    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Callable) -> None: ...


def install(model: ModelPatcher, settings: Settings) -> ModelPatcher:
    """A clone of `model` that runs the operator of `settings`; `model` stays as it is.

    Where the model has the settings of an earlier node, the clone has both. Raises ValueError where
    their steps overlap.
    """
    earlier = find_patch(model)
    rules = (settings,) if earlier is None else (*earlier.rules, settings)
    check_disjoint(rules)
    patch, patched = FoveatePatch(rules), model.clone()
    wrappers = {_APPLY_MODEL: patch.apply_model, _OUTER_SAMPLE: patch.outer_sample}
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, _KEY)
        patched.add_wrapper_with_key(kind, _KEY, wrapper)
    return patched


def find_patch(model: ModelPatcher) -> FoveatePatch | None:
    """What `install` has put on a model, if it has."""
    wrappers = model.get_wrappers(_APPLY_MODEL, _KEY)
    return wrappers[0].__self__ if wrappers else None


class FoveatePatch:
    """Two wrappers of ComfyUI's sampling that share the settings and the records.

    The signatures are ComfyUI's, open at the end: models pass arguments of their own.
    """

    def __init__(self, rules: tuple[Settings, ...]) -> None:
        self.rules = rules
        self.recorder = Recorder()
        self._key_counts = {}

    def report(self) -> str:
        """What ran, layer by layer, in the last sampling."""
        return self.recorder.text(self.rules)

    def outer_sample(self, executor: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around one sampling."""
        self.recorder.begin()
        try:
            return executor(*args, **kwargs)
        finally:
            if any(rule.verbose for rule in self.rules):
                logger.info("%s", self.report())

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
        layouts = family_of(model)
        self.recorder.model = type(model).__name__
        self.recorder.forwards += 1
        if layouts is None:
            self._note_unknown()
        else:
            geometry = read_geometry(model, x, c_crossattn, conds.get("ref_latents") or [])
            rule = self._active(base.model_sampling, float(t.max()))
            previous, notes = options.get(_SLOT), (self.recorder, self._key_counts)
            options[_SLOT] = Override(rule, layouts, geometry, previous, *notes)
        return executor(x, t, c_concat, c_crossattn, control, options, **conds)

    def _active(self, model_sampling: Any, sigma: float) -> Settings | None:
        """The settings whose steps `sigma` belongs to: from their start, before their end."""
        for rule in self.rules:
            start = model_sampling.percent_to_sigma(rule.start_percent)
            end = model_sampling.percent_to_sigma(rule.end_percent)
            if float(end) < sigma <= float(start):
                return rule
        return None

    def _note_unknown(self) -> None:
        self.recorder.unknown_model = (
            f"{self.recorder.model} is not in the layout table: every layer ran as without "
            "foveate. A row in comfyui/families.py adds a model."
        )
        self.recorder.warn_once(f"{self.recorder.model} is not in the layout table")
