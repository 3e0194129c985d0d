"""What is refused before anything is changed: no layer, two edits that exclude each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from torch import nn

from ..base import AttnProcessor
from .base import Modulation, Reader

__all__ = ["check_conflicts", "check_operator", "choose_layers"]

# edits of logits need the keys they are made for; two replacements of one thing exclude each other
_EXCLUDES = {
    "queries": {"queries"},
    "keys": {"keys", "own keys", "texts", "key bias", "text bias", "bias", "key scale"},
    "own keys": {"own keys"},
    "values": {"values"},
    "frame weights": {"frame weights"},
    "texts": {"texts"},
}
# further texts are keys like any other, hidden by a bias; every operator is linear in the values
_ALWAYS_CARRIED = {"texts", "value scale"}


def choose_layers(
    modulations: Sequence[Modulation], kinds: Mapping[str, str]
) -> dict[str, list[Modulation]]:
    """Layer name -> the modulations that act in it, in the order given, readers last."""
    chosen: dict[str, list[Modulation]] = {}
    for one in sorted(modulations, key=lambda m: isinstance(m, Reader)):
        where = f"{one.name} acts in {' and '.join(sorted(one.kinds))} layers"
        names = one.scope.choose(kinds, one.targets(kinds), where)
        if not names:
            raise ValueError(
                f"{one.name} matches no layer: it acts in {' and '.join(sorted(one.kinds))} "
                f"layers, and this model has {', '.join(sorted(set(kinds.values())))}"
            )
        for name in names:
            chosen.setdefault(name, []).append(one)
    # in the order of the model
    return {name: chosen[name] for name in kinds if name in chosen}


def check_conflicts(
    chosen: Mapping[str, Sequence[Modulation]],
    kinds: Mapping[str, str],
    attentions: Mapping[str, nn.Module],
) -> None:
    """Raise ValueError for heads a layer lacks and for two modulations that cannot both act."""
    for name, active in chosen.items():
        for one in active:
            beyond = [h for h in one.scope.heads or () if h >= attentions[name].heads]
            if beyond:
                raise ValueError(
                    f"{one.name} asks for heads {beyond} of {name}, which has "
                    f"{attentions[name].heads}; narrow it with where(layers=...)"
                )
        for one, two in combinations([m for m in active if not isinstance(m, Reader)], 2):
            edits = [m.edits_in(kinds[name]) for m in (one, two)]
            clash = _clash(*edits) or _clash(*reversed(edits))
            if clash and _meet(one, two):
                raise ValueError(
                    f"{one.name} and {two.name} conflict in {name}: {clash}; give them different "
                    "layers, steps or heads with where(...), or leave one out"
                )


def _clash(one: Iterable[str], two: Iterable[str]) -> str | None:
    for edit in one:
        both = _EXCLUDES.get(edit, set()) & set(two)
        if both:
            return f"one replaces the {edit}, the other edits the {min(both)}"
    return None


def _meet(one: Modulation, two: Modulation) -> bool:
    """Whether some call has both in the same rows and heads."""
    a, b = one.scope, two.scope
    steps = max(a.steps[0], b.steps[0]) < min(a.steps[1], b.steps[1])
    heads = a.heads is None or b.heads is None or bool(set(a.heads) & set(b.heads))
    prompts = {one.scene and one.scene.prompt, two.scene and two.scene.prompt}
    rows = "both" in (a.branch, b.branch) or (a.branch == b.branch and len(prompts) == 1)
    return steps and heads and rows


def check_operator(
    layer: str, kind: str, modulations: Sequence[Modulation], processor: AttnProcessor | None
) -> None:
    """Raise NotImplementedError for a modulation that the operator of a layer cannot carry."""
    if processor is None:
        return
    for one in modulations:
        refused = sorted(one.edits_in(kind) - processor.carries - _ALWAYS_CARRIED)
        if refused or one.scope.heads is not None:
            what = f"a {refused[0]}" if refused else "edits of single heads"
            raise NotImplementedError(
                f"{one.name} in {layer}: {processor.operator_name} attention cannot carry {what}; "
                "keep them apart with layers= of apply or where(layers=...)"
            )
