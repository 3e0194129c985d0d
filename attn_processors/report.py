"""What ran, layer by layer, and why a layer ran dense."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from ..kernels.columns import columns
from ..kernels.counts import KeyCount
from .guard import IN_GRAPH, is_finite, run_again
from .layer import Layer
from .tracker import Tracker

__all__ = ["LayerReport", "Recorder", "Report"]

logger = logging.getLogger(__name__)

_UNSEEN = (
    "not seen: compiled with gradients on, skipped by a cache, or its processor was replaced during"
    " the run"
)


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One attention layer over the last run.

    operator: what ran: an operator's name, "dense", both joined by "+", or "-" when no forward was
        seen.
    seen: forwards of the model in which the layer was called.
    forwards, dense_forwards: those in which the operator and the stock softmax ran; a layer with
        two calls may have had both in one.
    tokens: of the last call of the operator; None when dense.
    keys: what one image query of that call needs and is compared with, means; None when dense.
    reason: why dense.
    """

    layer: str
    kind: str
    operator: str
    seen: int
    forwards: int
    dense_forwards: int
    tokens: int | None
    keys: KeyCount | None
    reason: str


@dataclass(frozen=True)
class Report:
    """The layers of one model, in the order of its modules; `print` shows a table.

    companions: dataclasses, reports of what was put on the model beside operators, and of the
        pipeline's other denoiser.
    received_bytes: what this rank got from others in the operators of this run; None where the
        tokens are not split over ranks (context parallelism).
    denoiser: which of the two it is of, where a pipeline has two.
    """

    layers: tuple[LayerReport, ...]
    forwards: int
    processors: tuple[str, ...]
    companions: tuple[object, ...] = ()
    received_bytes: int | None = None
    denoiser: str = ""

    def __str__(self) -> str:
        ran = sum(row.forwards > 0 for row in self.layers)
        title = f"{self.denoiser}: " if self.denoiser else ""
        title += f"{', '.join(self.processors)}: ran in {ran} of {len(self.layers)} layers, "
        title += f"{self.forwards} forwards"
        if self.received_bytes is not None:
            title += f", {self.received_bytes:,} bytes received from other ranks"
        header = (
            "layer",
            "kind",
            "ran",
            "forwards",
            "tokens",
            "keys/query",
            "of dense",
            "dense because",
        )
        lines = columns([header, *_joined(self.layers)])
        return "\n".join((title, *lines, *map(str, self.companions)))

    def to_json(self) -> str:
        """As a JSON object with the names of these fields; keys are {"needed", "visited"}."""
        return json.dumps(_plain(self), indent=1)


def _plain(value: object) -> object:
    """Dataclasses and counts of keys by the names of their fields."""
    if isinstance(value, KeyCount):
        return value._asdict()
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _joined(layers: Sequence[LayerReport]) -> list[tuple[str, ...]]:
    """The lines of a table, one for all layers in which the same happened."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in layers:
        alike.setdefault(_cells(row), []).append(row.layer)
    return [(_names(names), *cells) for cells, names in alike.items()]


def _names(layers: Sequence[str]) -> str:
    first, *others = layers
    return f"{first} and {len(others)} more" if others else first


def _cells(row: LayerReport) -> tuple[str, ...]:
    return (
        row.kind,
        row.operator,
        f"{row.forwards}/{row.seen}" if row.seen else "",
        "" if row.tokens is None else str(row.tokens),
        "" if row.keys is None else f"{row.keys.visited:.1f}",
        "" if row.keys is None else f"{row.keys.visited / row.tokens:.1%}",
        row.reason,
    )


class Recorder:
    """Forward hook: settles each layer after every forward, starting anew with every run.

    A run begins when the scheduler makes new timesteps; without a pipeline everything since `apply`
    is one run.

    denoiser: which of two it watches. peers: those of the other; a run is one for all of them.
    """

    def __init__(self, layers: Sequence[Layer], tracker: Tracker, denoiser: str = "") -> None:
        self.layers = tuple(layers)
        self.tracker = tracker
        self.denoiser = denoiser
        self.peers: tuple[Recorder, ...] = ()
        self.forwards = 0
        self._schedule: torch.Tensor | None = None
        self._logged: set[str] = set()

    @torch.compiler.disable
    def begin(self, model: nn.Module, args: tuple) -> None:
        """Forward pre-hook: what a forward cut short left behind counts for nothing."""
        exchange = self.tracker.exchange
        if exchange is not None and self.tracker.schedule is not self._schedule:
            exchange.received = 0
        for layer in self.layers:
            layer.begin()

    @torch.compiler.disable
    def __call__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        unseen = [layer for layer in self.layers if layer.is_unseen]
        if unseen and not is_finite(output):
            output = self._run_again(model, args, kwargs, unseen)
        for layer in unseen:
            layer.trust()
        if self.tracker.schedule is not self._schedule:
            for recorder in (self, *self.peers):
                recorder.start(self.tracker.schedule)
        self.forwards += 1
        for layer in self.layers:
            self.log_once(layer.name, layer.settle())
        return output

    def _run_again(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any], unseen: Sequence[Layer]
    ) -> Any:
        """The output of a forward without its compiled graph, in which `unseen` ran operators."""
        for layer in unseen:
            layer.forget()
        output = run_again(model, args, kwargs)
        if is_finite(output) and all(layer.guard.broken is None for layer in unseen):
            for layer in unseen:
                layer.guard.broken = IN_GRAPH
        return output

    def start(self, schedule: torch.Tensor | None) -> None:
        """Begin a run: what counted before counts no more."""
        self._schedule = schedule
        self.forwards = 0
        for layer in self.layers:
            layer.reset()

    def log_once(self, name: str, reason: str | None) -> None:
        """One warning per reason, naming the first layer."""
        if reason is None or reason in self._logged:
            return
        self._logged.add(reason)
        logger.warning("%s runs dense: %s (further layers: see report())", name, reason)

    def report(self, replaced: dict[str, str], companions: Sequence[object]) -> Report:
        """The report so far; `replaced` maps layers that lost our processor to what they hold."""
        processors = dict.fromkeys(
            repr(p) for p in (layer.processor for layer in self.layers) if p is not None
        )
        rows = tuple(self._row(layer, replaced.get(layer.name)) for layer in self.layers)
        exchange = self.tracker.exchange
        return Report(
            rows,
            self.forwards,
            tuple(processors),
            tuple(companions),
            received_bytes=None if exchange is None else exchange.received,
            denoiser=self.denoiser,
        )

    def _row(self, layer: Layer, replaced: str | None) -> LayerReport:
        reasons = [f"{reason} ({count}x)" for reason, count in layer.reasons.items()]
        if replaced is not None:
            reasons.append(f"processor replaced by {replaced} since: remove() and apply again")
        elif layer.untouched is not None:
            reasons.append(layer.untouched)
        elif self.forwards and not layer.seen:
            reasons.append(_UNSEEN)
        return LayerReport(
            layer=layer.name,
            kind=layer.kind,
            operator=_operator_name(layer),
            seen=layer.seen,
            forwards=layer.forwards,
            dense_forwards=layer.dense_forwards,
            tokens=None if layer.layout is None else layer.layout.num_tokens,
            keys=None if layer.layout is None else layer.present.count_keys(layer.layout),
            reason="; ".join(reasons),
        )


def _operator_name(layer: Layer) -> str:
    if layer.processor is None:
        return "dense"
    names = [layer.processor.operator_name] if layer.forwards else []
    if layer.reasons:
        names.append("dense")
    return "+".join(names) or "-"
