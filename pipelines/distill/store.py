"""A trained student on disk: student.safetensors, and student.json that says what it is.

Tensor names are the layer's name and the part's, as in `...attn1.to_q.weight`; modules are rebuilt
from their shapes, so that loading needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ...attn_processors import AgentLayer, AgentWeights, LinearLayer, LocalLayer, LocalWeights
from ...attn_processors.base import AttnProcessor
from ...attn_processors.fingerprint import fingerprint
from ...attn_processors.hosts import denoiser_of
from ...attn_processors.trained.layers import LayerWeights, TrainedLayer
from ...attn_processors.trained.linear import HedgehogMap, generalised
from ...attn_processors.trained.projections import PROJECTIONS
from ..shapes.load import embedded_students
from .student import WEIGHTS, student_processor

__all__ = ["StudentCard", "load_student", "load_weights", "save_student", "versions"]

_WEIGHTS, _CARD = "student.safetensors", "student.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """What student.json holds.

    student, radius, pool, agents, feature_map, gate: what `student_processor` takes.
    base, base_class, base_fingerprint: the teacher, as it was asked for, its class and weights.
    text: tokens of text in training; size: [height, width] of its pictures in pixels.
    """

    student: str
    radius: int | None
    feature_map: str
    gate: float
    layers: tuple[str, ...]
    base: str
    base_class: str
    base_fingerprint: str
    text: int
    size: tuple[int, int]
    layer_steps: int
    steps: int
    versions: Mapping[str, str]
    pool: int | None = None
    agents: int | None = None
    format: int = _FORMAT


def versions() -> dict[str, str]:
    """Of the libraries that train."""
    return {name: version(name) for name in ("torch", "diffusers", "accelerate")}


def save_student(
    folder: str | Path, card: StudentCard, weights: LayerWeights, dtype: torch.dtype
) -> Path:
    """Write the student's files into `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{part}": tensor.detach().to("cpu", dtype).contiguous()
        for name, layer in zip(weights.names, weights, strict=True)
        for part, tensor in layer.state_dict().items()
    }
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    (folder / _CARD).write_text(json.dumps(asdict(card), indent=1) + "\n")
    return folder


def load_student(source: str | Path, pipe: DiffusionPipeline | None = None) -> AttnProcessor:
    """The processor of a saved student, for `foveate.apply(pipe, processor)`.

    source: the folder of a student, or the name of one that travels in the package.
    pipe: where given, a pipeline whose denoiser is not the student's teacher is a ValueError; a
        fine-tune of it is such a one.

    The trained parts are frozen, in float32 on the CPU; `apply` copies them to the model's device
    and dtype.
    """
    folder = _folder_of(source)
    card = _read_card(folder)
    if pipe is not None:
        _check_base(card, pipe)
    return student_processor(card, load_weights(folder))


def load_weights(source: str | Path) -> LayerWeights:
    """The trained parts alone, frozen."""
    folder = _folder_of(source)
    card, path = _read_card(folder), folder / _WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    layers = {}
    for name in card.layers:
        names = [key for key in tensors if key.startswith(f"{name}.")]
        own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in names}
        layers[name] = _layer_of(card.student, name, own)
    if tensors:
        raise ValueError(f"{path} holds tensors of no layer it names: {', '.join(tensors)}")
    return WEIGHTS[card.student](layers).eval().requires_grad_(False)


def _folder_of(source: str | Path) -> Path:
    """A folder of that path first, then an embedded student of that name."""
    if (Path(source) / _CARD).is_file():
        return Path(source)
    embedded = embedded_students()
    if str(source) in embedded:
        return embedded[str(source)]
    known = ", ".join(embedded) or "none"
    raise ValueError(
        f"{source} is neither the folder of a student (there is no {_CARD} in it) nor the name of "
        f"an embedded one; embedded are: {known}"
    )


def _read_card(folder: Path) -> StudentCard:
    path = folder / _CARD
    try:
        found = json.loads(path.read_text())
        card = StudentCard(**found)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the card of a student: {error}") from None
    if card.format != _FORMAT:
        raise ValueError(f"{path} has format {card.format}; this version reads {_FORMAT}")
    if card.student not in WEIGHTS:
        raise ValueError(f"{path} has an unknown student {card.student!r}")
    return card


def _check_base(card: StudentCard, pipe: DiffusionPipeline) -> None:
    model, _ = denoiser_of(pipe, "load_student")
    got = type(model).__name__, fingerprint(model)
    if got != (card.base_class, card.base_fingerprint):
        raise ValueError(
            f"this student was made for {card.base} ({card.base_class}, weights "
            f"{card.base_fingerprint}), got {got[0]} with weights {got[1]}; "
            "leave out `pipe` to use it all the same"
        )


def _layer_of(kind: str, name: str, tensors: Mapping[str, torch.Tensor]) -> TrainedLayer:
    """A layer with the modules that tensors of these names and shapes belong to."""
    weights = WEIGHTS[kind]
    if weights is AgentWeights:
        layer = AgentLayer(**_parameters(tensors, AgentLayer.PARTS))
    elif weights is LocalWeights:
        layer = LocalLayer(**_projections(tensors), **_parameters(tensors, ("pool_weight",)))
    else:
        layer = LinearLayer(
            **_projections(tensors), **_maps(tensors), **_parameters(tensors, ("gate",))
        )
    try:
        layer.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"the weights of {name} do not fit together: {error}") from None
    return layer


def _parameters(
    tensors: Mapping[str, torch.Tensor], names: Sequence[str]
) -> dict[str, nn.Parameter]:
    found = {name: tensors[name] for name in names if name in tensors}
    return {name: nn.Parameter(torch.empty(tensor.shape)) for name, tensor in found.items()}


def _projections(tensors: Mapping[str, torch.Tensor]) -> dict[str, nn.Module]:
    names = [part for part in PROJECTIONS[:3] if f"{part}.weight" in tensors]
    parts: dict[str, nn.Module] = {part: _linear(tensors, part) for part in names}
    if "to_out.0.weight" in tensors:
        parts["to_out"] = nn.ModuleList([_linear(tensors, "to_out.0"), nn.Dropout(0.0)])
    return parts


def _maps(tensors: Mapping[str, torch.Tensor]) -> dict[str, nn.Module]:
    """The generalised projections and the feature maps."""
    parts: dict[str, nn.Module] = {}
    for part in ("to_q_", "to_k_"):
        if f"{part}.0.weight" in tensors:
            middle, width = tensors[f"{part}.0.weight"].shape
            parts[part] = generalised(width, middle)
    for part in ("map_q", "map_k"):
        if f"{part}.weight" in tensors:
            parts[part] = HedgehogMap(*tensors[f"{part}.weight"].shape[:2])
    return parts


def _linear(tensors: Mapping[str, torch.Tensor], name: str) -> nn.Linear:
    outer, inner = tensors[f"{name}.weight"].shape
    return nn.Linear(inner, outer, bias=f"{name}.bias" in tensors)
