"""Which layer takes which processor, and what is refused before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..kernels.schedule import check_fractions
from .base import AttnProcessor
from .hosts import check_pattern, matches
from .layer import Layer
from .layouts import TARGETS
from .redirect import Redirected
from .slot import processor_in

__all__ = ["check_options", "choose", "refuse_second", "refuse_weights"]

_WHERE = "operators run in self-attention and joint layers"


def refuse_weights(
    models: Mapping[str, nn.Module], processor: AttnProcessor | Mapping[str, AttnProcessor]
) -> None:
    """Raises ValueError for trained weights, where there are two models to put them on."""
    every = processor.values() if isinstance(processor, Mapping) else [processor]
    for one in every:
        if isinstance(one, AttnProcessor) and one.operator.is_trained:
            raise ValueError(
                f"{one!r} holds weights of one model, and the pipeline has "
                f"{' and '.join(models)}; apply to each model what was trained for it"
            )


def check_options(min_tokens: int, steps: tuple[float, float] | None) -> None:
    """Raises ValueError for bad values of these options of `apply`."""
    if not isinstance(min_tokens, int) or min_tokens < 0:
        raise ValueError(f"min_tokens must be an integer >= 0, got {min_tokens!r}")
    if steps is not None:
        check_fractions("steps", steps)


def refuse_second(attentions: Mapping[str, nn.Module]) -> None:
    """Raises ValueError where a layer already holds a processor of ours."""
    for name, module in attentions.items():
        present = processor_in(module)
        if isinstance(present, AttnProcessor):
            raise ValueError(
                f"{name} already holds {present!r}, put there by set_attn_processor; "
                "set the stock processors back before foveate.apply"
            )
        attend = present.attend if isinstance(present, Redirected) else None
        if attend is not None and not isinstance(getattr(attend, "__self__", None), Layer):
            raise ValueError(
                f"{name} is modulated, and operators lie beneath that; remove() the run of "
                "foveate.modulate, put apply on first, then modulate again"
            )
        if attend is not None:
            raise ValueError(
                f"{name} already runs a foveate operator; call remove() on the earlier handle first"
            )


def choose(
    kinds: Mapping[str, str],
    processor: AttnProcessor | Mapping[str, AttnProcessor],
    layers: str | Sequence[str] | None,
) -> dict[str, AttnProcessor]:
    """Layer name -> its processor, for the layers that shall take one."""
    rules = processor if isinstance(processor, Mapping) else {"*": processor}
    if not rules:
        raise ValueError("the mapping of patterns to processors is empty")
    for pattern, value in rules.items():
        if not isinstance(value, AttnProcessor):
            raise ValueError(f"expected a foveate processor object for {pattern!r}, got {value!r}")
    wanted = ["*"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    targets = [name for name, kind in kinds.items() if kind in TARGETS]
    for pattern in (*rules, *wanted):
        check_pattern(pattern, kinds, targets, _WHERE)
    chosen = {}
    for name in targets:
        rule = next((value for pattern, value in rules.items() if matches(name, pattern)), None)
        if rule is not None and any(matches(name, pattern) for pattern in wanted):
            chosen[name] = rule
    if not chosen:
        raise ValueError(f"no layer matches both the mapping {list(rules)} and layers={wanted}")
    return chosen
