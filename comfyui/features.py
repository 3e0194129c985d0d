"""What the foveate nodes behind one another ask of one model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .broadcast import BroadcastSettings
from .maps import PhraseSettings
from .settings import Settings, check_disjoint

__all__ = ["Feature", "Features"]

Feature = Settings | BroadcastSettings | PhraseSettings | None


@dataclass(frozen=True, slots=True)
class Features:
    """rules: of Foveate Attention nodes. Regions come with the conditioning and ask for nothing."""

    rules: tuple[Settings, ...] = ()
    broadcast: BroadcastSettings | None = None
    phrases: PhraseSettings | None = None

    def joined(self, feature: Feature) -> Features:
        """With one node more, in any order. Raises ValueError where two would contradict."""
        if isinstance(feature, Settings):
            rules = (*self.rules, feature)
            check_disjoint(rules)
            return replace(self, rules=rules)
        if isinstance(feature, BroadcastSettings):
            _check_alone("Foveate Broadcast", self.broadcast, feature)
            return replace(self, broadcast=feature)
        if isinstance(feature, PhraseSettings):
            _check_alone("Foveate Read Maps", self.phrases, feature)
            return replace(self, phrases=feature)
        return self


def _check_alone(node: str, earlier: Feature, feature: Feature) -> None:
    if earlier is not None:
        raise ValueError(
            f"this model already has a {node} node ({earlier}) beside this one ({feature}): "
            "bypass one of them"
        )
