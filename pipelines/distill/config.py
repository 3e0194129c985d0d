"""Every option of a distillation, in one object that checks itself; read from YAML or flags."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MAY_CHANGE", "STUDENTS", "DistillConfig", "read_config"]

# what is trained where `train` is not given
STUDENTS = {
    "linear": ("to_q", "to_k", "to_v", "to_out", "g"),
    "local": ("to_q", "to_k", "to_v", "to_out"),
    "foveated": ("to_q", "to_k", "to_v", "to_out"),
    "agent": ("key_bias", "query_bias", "conv"),
    "hybrid": ("maps", "gate"),
}
_TRAINABLE = {
    "linear": {"to_q", "to_k", "to_v", "to_out", "g", "maps"},
    "local": {"to_q", "to_k", "to_v", "to_out"},
    "foveated": {"to_q", "to_k", "to_v", "to_out", "pool_weight"},
    "agent": {"key_bias", "query_bias", "conv"},
    "hybrid": {"to_q", "to_k", "to_v", "to_out", "g", "maps", "gate"},
}
# options that these students need and the others have not
_NEEDED = {"radius": ("local", "foveated", "hybrid"), "pool": ("foveated",), "agents": ("agent",)}
_CHOICES = {
    "student": tuple(STUDENTS),
    "schedule": ("cosine", "constant"),
    "density": ("uniform", "logit_normal", "mode"),
    "mixed_precision": ("no", "bf16", "fp16"),
    "save_dtype": ("float32", "bfloat16", "float16"),
}
# options that a resumed run may have changed: they do not change what is trained
MAY_CHANGE = (
    "out",
    "data",
    "log_every",
    "save_every",
    "picture_every",
    "checkpointing",
    "save_dtype",
)


def _option(panel: str, help: str, default: object = dataclasses.MISSING):
    return field(default=default, metadata={"panel": panel, "help": help})


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Options by group; `metadata["help"]` of a field says what it means."""

    model: str = _option("What", "shapes-sd, shapes-flux, or a folder that save_pretrained wrote.")
    out: str = _option("What", "Folder of the run: checkpoints, log, pictures, the student.")
    student: str = _option(
        "Student",
        "linear (LinFusion), local (CLEAR), foveated, agent, or hybrid: a softmax window, "
        "linear beyond.",
    )
    radius: int | None = _option(
        "Student", "Of the window, in tokens: local, foveated and hybrid.", None
    )
    pool: int | None = _option("Student", "Side of the foveated student's cells, in tokens.", None)
    agents: int | None = _option("Student", "Of the agent student.", None)
    feature_map: str = _option("Student", "Of linear attention, where maps are not trained.", "elu")
    train: tuple[str, ...] | None = _option(
        "Student",
        "Parts: to_q, to_k, to_v, to_out, g, maps, gate, pool_weight, key_bias, query_bias, conv. "
        "Default: local and foveated the first four, linear g too, hybrid maps and gate, agent "
        "the last three.",
        None,
    )
    mid_dim: int | None = _option("Student", "Middle width of g. Default: the layer's own.", None)
    gate: float = _option("Student", "Where the hybrid's gates start.", 1.0)
    layers: tuple[str, ...] | None = _option(
        "Student", "Patterns of layer names, such as 'up_blocks.*'. Default: every layer.", None
    )
    start: str | None = _option(
        "Student",
        "A saved student to go on from, of the same kind or with fewer parts: hybrid from local.",
        None,
    )

    prompts: str | None = _option(
        "Data", "Text file, a prompt a line. Default: captions of the embedded models.", None
    )
    pictures: int = _option("Data", "Pictures that the teacher draws to train on.", 1000)
    picture_steps: int = _option("Data", "Denoising steps of a picture.", 25)
    picture_batch: int = _option("Data", "Pictures drawn at once.", 25)
    height: int | None = _option("Data", "Pixels. Default: the model's base size.", None)
    width: int | None = _option("Data", "Pixels. Default: the model's base size.", None)
    guidance_scale: float | None = _option("Data", "Default: the pipeline's.", None)
    text_length: int | None = _option(
        "Data", "Tokens of text (max_sequence_length). Default: the pipeline's.", None
    )
    data: str | None = _option("Data", "Folder of the pictures. Default: data in OUT.", None)

    layer_steps: int = _option("Training", "Steps of the first stage, layer by layer.", 500)
    layer_rate: float = _option("Training", "Learning rate of the first stage.", 1e-3)
    steps: int = _option("Training", "Steps of the second stage, end to end.", 500)
    rate: float = _option("Training", "Learning rate of the second stage.", 1e-4)
    schedule: str = _option("Training", "Of the learning rates: cosine or constant.", "cosine")
    warmup: int = _option("Training", "Steps in which a learning rate rises.", 20)
    batch: int = _option("Training", "Pictures a step on each process.", 16)
    accumulate: int = _option("Training", "Batches summed into one step.", 1)
    weight_decay: float = _option("Training", "AdamW's.", 0.0)
    clip: float = _option("Training", "Largest norm of a gradient.", 1.0)
    ema: float = _option("Training", "Decay of the average that is saved; 0: none.", 0.99)
    task_weight: float = _option("Training", "Of the diffusion loss, second stage.", 1.0)
    prediction_weight: float = _option("Training", "Of the distance to the teacher's output.", 0.5)
    attention_weight: float = _option(
        "Training", "Of the distance to the teacher's attention outputs.", 0.5
    )
    caption_dropout: float = _option("Training", "Share of pictures with the empty caption.", 0.1)
    density: str = _option("Training", "Of timesteps: uniform, logit_normal or mode.", "uniform")
    mixed_precision: str = _option("Training", "no, bf16 or fp16.", "no")
    checkpointing: bool = _option(
        "Training", "Gradient checkpointing: less memory for more time.", False
    )
    seed: int = _option("Training", "Of everything drawn at random.", 0)

    log_every: int = _option("Watching", "Steps between rows of the log.", 10)
    save_every: int = _option("Watching", "Steps between checkpoints.", 100)
    picture_every: int = _option("Watching", "Steps between pictures of the student; 0: none.", 0)
    save_dtype: str = _option("Watching", "Of the saved student.", "float32")

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, _as(name, kind, getattr(self, name)))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        self._check_numbers()
        self._check_student()

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained."""
        return STUDENTS[self.student] if self.train is None else self.train

    def _check_numbers(self) -> None:
        at_least_one = ("pictures", "picture_steps", "picture_batch", "batch", "accumulate")
        for name in (*at_least_one, "log_every", "save_every", "height", "width", "mid_dim"):
            _check(name, getattr(self, name), 1)
        _check("text_length", self.text_length, 1)
        _check("agents", self.agents, 1)
        _check("pool", self.pool, 2)
        for name in ("layer_steps", "steps", "warmup", "picture_every", "weight_decay", "gate"):
            _check(name, getattr(self, name), 0)
        for name in ("task_weight", "prediction_weight", "attention_weight", "seed"):
            _check(name, getattr(self, name), 0)
        for name in ("layer_rate", "rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("ema", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.layer_steps + self.steps == 0:
            raise ValueError("layer_steps and steps are both 0: nothing would be trained")
        if self.task_weight + self.prediction_weight + self.attention_weight == 0:
            raise ValueError("task_weight, prediction_weight and attention_weight are all 0")

    def _check_student(self) -> None:
        strange = [part for part in self.parts if part not in _TRAINABLE[self.student]]
        if strange or not self.parts:
            known = sorted(_TRAINABLE[self.student])
            raise ValueError(
                f"train of a {self.student} student must name some of {', '.join(known)}, "
                f"got {', '.join(self.parts) or 'none'}"
            )
        for name, kinds in _NEEDED.items():
            is_given = getattr(self, name) is not None
            if is_given and self.student not in kinds:
                raise ValueError(f"{name} is for {', '.join(kinds)}, not for a {self.student} one")
            if not is_given and self.student in kinds:
                raise ValueError(f"a {self.student} student needs {name}")
        if "maps" in self.parts and "gate" not in self.parts and self.gate == 0:
            raise ValueError("maps get no gradient where the gate stays at 0; give gate > 0")


def read_config(path: str | Path | None, changes: Mapping[str, object]) -> DistillConfig:
    """The options of a YAML file, if one is given, and `changes` over them."""
    found: object = {}
    if path is not None:
        import yaml

        try:
            found = yaml.safe_load(Path(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path} must hold lines 'option: value', got {found!r}")
    given = {**found, **changes}
    known = {option.name: option for option in dataclasses.fields(DistillConfig)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.0)
            raise ValueError(f"unknown option {name!r}; near: {', '.join(near)}")
    needed = (n for n, option in known.items() if option.default is dataclasses.MISSING)
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"missing option{'s' * (len(missing) > 1)}: {', '.join(missing)}")
    return DistillConfig(**given)


def _as(name: str, kind: object, value: object) -> object:
    """`value` as its declared kind; YAML reads 1e-4 as a string and a list for a tuple."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    (wanted,) = (k for k in kinds if k is not type(None))
    if typing.get_origin(wanted) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{name} must be a list of texts, got {value!r}")
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r}") from None
    is_bool_for_int = wanted is int and isinstance(value, bool)
    if not isinstance(value, wanted) or is_bool_for_int:
        raise ValueError(f"{name} must be of type {wanted.__name__}, got {value!r}")
    return value


def _check(name: str, value: float | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
