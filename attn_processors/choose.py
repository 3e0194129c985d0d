"""Which layer takes which processor, and what is refused before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..kernels.inputs import check_positive
from ..kernels.schedule import check_fractions
from .applied import applied_to
from .base import AttnProcessor
from .hosts import check_pattern, matches, pattern_list
from .layouts import TARGETS, Family
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


def check_options(
    min_tokens: int, steps: tuple[float, float] | None, family: Family | None
) -> None:
    """Raises ValueError for bad values of these options of `apply`."""
    check_positive("min_tokens", min_tokens, least=0)
    if family is not None and not isinstance(family, Family):
        raise ValueError(f"family must be a foveate.Family (docs/layouts.md), got {family!r}")
    if steps is not None:
        check_fractions("steps", steps)


def refuse_second(model: nn.Module, attentions: Mapping[str, nn.Module]) -> None:
    """Raises ValueError for a model with an operator on, and for a layer that holds one."""
    if applied_to(model):
        raise ValueError(
            f"{type(model).__name__} already runs a foveate operator; call remove() on its handle "
            "first, or foveate.remove(pipe)"
        )
    for name, module in attentions.items():
        present = processor_in(module)
        if isinstance(present, AttnProcessor):
            raise ValueError(
                f"{name} already holds {present!r}, put there by set_attn_processor; "
                "set the stock processors back before foveate.apply"
            )
        if isinstance(present, Redirected) and present.attend is not None:
            raise ValueError(
                f"{name} is modulated, and operators lie beneath that; remove() the run of "
                "foveate.modulate, put apply on first, then modulate again"
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
    wanted = pattern_list(layers)
    targets = [name for name, kind in kinds.items() if kind in TARGETS]
    for pattern in (*rules, *wanted):
        check_pattern(pattern, kinds, targets, _WHERE)
    taken = _first_patterns(targets, list(rules))
    chosen = {
        name: rules[pattern]
        for name, pattern in taken.items()
        if any(matches(name, one) for one in wanted)
    }
    if not chosen:
        raise ValueError(f"no layer matches both the mapping {list(rules)} and layers={wanted}")
    return chosen


def _first_patterns(targets: Sequence[str], patterns: Sequence[str]) -> dict[str, str]:
    """Layer name -> the first pattern that matches it, if one does.

    Raises ValueError for a pattern whose layers are all matched by earlier ones.
    """
    matching = {name: [p for p in patterns if matches(name, p)] for name in targets}
    first = {name: found[0] for name, found in matching.items() if found}
    for pattern in patterns:
        if pattern not in first.values():
            before = dict.fromkeys(first[n] for n, found in matching.items() if pattern in found)
            raise ValueError(
                f"{pattern!r} never applies: {' and '.join(map(repr, before))} comes first"
            )
    return first
