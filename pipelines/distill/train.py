"""Distil a student: draw pictures, train layer by layer, then end to end, and save it.

Attention transfer first (LoLCATs, arXiv:2410.10254), then task, prediction and attention losses
together (LinFusion, arXiv:2409.02097; CLEAR, arXiv:2412.16112).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from ...attn_processors import apply
from ...attn_processors.fingerprint import fingerprint
from ...attn_processors.hosts import denoiser_of
from ...attn_processors.trained.layers import LayerWeights
from ..sizes import base_side, check_size
from .config import MAY_CHANGE, DistillConfig
from .data import Pictures, data_folder, draw_pictures
from .distiller import Distiller
from .log import Log, plot_losses, read_log
from .noising import Noising
from .prompts import read_prompts, scene_prompts
from .sheet import draw_row, sheet
from .stage import Stage, make_accelerator, run_stage, stages_of
from .store import StudentCard, load_weights, save_student, versions
from .student import fresh_weights, student_processor

__all__ = ["distill"]

_SHOWN = 6  # prompts whose pictures are shown on the way


def distill(
    pipe: DiffusionPipeline,
    config: DistillConfig,
    *,
    call: Mapping[str, object] | None = None,
    base_size: int | None = None,
) -> Path:
    """Train a student of `pipe` and save it in the folder `config.out` / "student", returned.

    The pipeline is left as it was, on the device that accelerate chose. A stopped run goes on from
    its newest checkpoint, to the same weights. On several processes (`accelerate launch`) each
    calls this.

    call: arguments that the pipeline likes, such as guidance_scale; options of `config` go first.
    base_size: side in pixels where `config` gives none; None asks the pipeline.
    """
    model, _ = denoiser_of(pipe, "distill")
    call = _call(pipe, config, call, base_size)
    _check_precision(model, config)
    accelerator = make_accelerator(config)
    out = Path(config.out)
    weights = _start(model, config)
    processor = student_processor(config, weights)
    if accelerator.is_main_process:
        _keep_config(out, config)
    pipe.to(accelerator.device)
    weights.to(accelerator.device)
    with _quiet(pipe), _frozen(model, config):
        pictures = _pictures(pipe, model, config, call)
        with apply(pipe, processor, layers=list(weights.names)) as handle:
            shared = Pictures(pictures, config, 0, 1).shared()
            shared = {name: x.to(accelerator.device) for name, x in shared.items()}
            noising = Noising(pipe.scheduler)
            distiller = Distiller(model, handle, weights, noising, shared, config)
            show = _Show(pipe, handle, config, call)
            _run_stages(distiller, config, pictures, show)
    folder = out / "student"
    if PartialState().is_main_process:
        # a copy of its own: FSDP leaves shards in the one that was trained
        weights = _start(model, config)
        weights.load_state_dict(load_file(_result(out, stages_of(config)[-1])))
        dtype = getattr(torch, config.save_dtype)
        save_student(folder, _card(model, config, weights, shared, pictures, call), weights, dtype)
    PartialState().wait_for_everyone()
    return folder


def _run_stages(distiller: Distiller, config: DistillConfig, pictures: Path, show: _Show) -> None:
    """Every stage that is not done; what it leaves is kept as STAGE.safetensors."""
    out, state = Path(config.out), PartialState()
    log, previous = Log(out / "log.jsonl"), None
    for stage in stages_of(config):
        path = _result(out, stage)
        if previous is not None:
            # from the file always, so that a resumed run has the same
            distiller.student.load_state_dict(load_file(previous))
        previous = path
        if not path.exists():
            trained = run_stage(distiller, stage, pictures, config, log, show)
            if state.is_main_process:
                trained = {name: x.cpu().contiguous() for name, x in trained.items()}
                save_file(trained, out / "unfinished")
                (out / "unfinished").rename(path)
            state.wait_for_everyone()
        if state.is_main_process and find_spec("matplotlib") is not None:
            plot_losses(read_log(log.path), out / "loss.png")


def _result(out: Path, stage: Stage) -> Path:
    return out / f"{stage.name}.safetensors"


class _Show:
    """Writes pictures of the teacher and of the present student."""

    def __init__(self, pipe, handle, config: DistillConfig, call: Mapping[str, object]) -> None:
        self.pipe, self.handle, self.config, self.call = pipe, handle, config, call
        self.prompts = _prompts(config)[:_SHOWN]
        self.teacher: list | None = None

    def __call__(self, name: str) -> None:
        if self.teacher is None:
            with self.handle.paused():
                self.teacher = self._draw()
        folder = Path(self.config.out) / "pictures"
        folder.mkdir(exist_ok=True)
        sheet(self.teacher, self._draw()).save(folder / f"{name}.png")

    def _draw(self) -> list:
        return draw_row(self.pipe, self.prompts, self.config.picture_steps, self.call)


def _call(
    pipe: DiffusionPipeline,
    config: DistillConfig,
    call: Mapping[str, object] | None,
    base_size: int | None,
) -> dict[str, object]:
    """The arguments of every call of the pipeline beside prompts, steps and noise."""
    side = base_side(pipe) if base_size is None else base_size
    height = side if config.height is None else config.height
    width = side if config.width is None else config.width
    check_size(pipe, height, width)
    asked = {"guidance_scale": config.guidance_scale, "max_sequence_length": config.text_length}
    given = {name: value for name, value in asked.items() if value is not None}
    return {**({} if call is None else call), **given, "height": height, "width": width}


def _check_precision(model: nn.Module, config: DistillConfig) -> None:
    if model.dtype != torch.float32 and config.mixed_precision == "no":
        raise ValueError(
            f"the model is in {model.dtype} and the student is trained in float32: "
            "give mixed_precision bf16 or fp16, or load the model in float32"
        )


def _start(model: nn.Module, config: DistillConfig) -> LayerWeights:
    """Untrained parts; those of the student to go on from, which may be fewer, take their place."""
    weights = fresh_weights(model, config)
    if config.start is None:
        return weights
    found = load_weights(config.start)
    ours, theirs = (
        {key: tuple(x.shape) for key, x in part.state_dict().items()} for part in (weights, found)
    )
    if weights.names != found.names or not theirs.items() <= ours.items():
        raise ValueError(f"start={config.start} holds a student of other layers, parts or sizes")
    weights.load_state_dict(found.state_dict(), strict=False)
    return weights


@contextmanager
def _quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """No progress bar a picture: the drawing as a whole has one."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


@contextmanager
def _frozen(model: nn.Module, config: DistillConfig) -> Iterator[None]:
    """No gradients for the model's own weights; its flags come back afterwards."""
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    was_training, was_checkpointing = model.training, model.is_gradient_checkpointing
    model.requires_grad_(False).eval()
    if config.checkpointing and not was_checkpointing:
        model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if config.checkpointing and not was_checkpointing:
            model.disable_gradient_checkpointing()
        model.train(was_training)
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)


def _prompts(config: DistillConfig) -> list[str]:
    if config.prompts is None:
        return scene_prompts(config.pictures, config.seed)
    return read_prompts(config.prompts, config.pictures)


def _pictures(pipe, model: nn.Module, config: DistillConfig, call: Mapping[str, object]) -> Path:
    """The folder of the teacher's pictures, drawn where they are missing, by all processes."""
    prompts, state = _prompts(config), PartialState()
    folder = data_folder(model, prompts, config, call)
    draw_pictures(
        pipe,
        model,
        prompts,
        config,
        call,
        folder,
        rank=state.process_index,
        world=state.num_processes,
    )
    state.wait_for_everyone()
    return folder


def _keep_config(out: Path, config: DistillConfig) -> None:
    """Write the options beside the run; refuse to go on with others than it began with."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    now = json.loads(json.dumps(asdict(config)))
    if path.exists():
        before = json.loads(path.read_text())
        changed = [
            f"{name} was {before.get(name)!r}, is {now[name]!r}"
            for name in now
            if name not in MAY_CHANGE and before.get(name) != now[name]
        ]
        if changed:
            raise ValueError(
                f"{out} holds a run with other options ({'; '.join(changed)}); "
                "choose another out, or delete that folder"
            )
    path.write_text(json.dumps(now, indent=1) + "\n")


def _card(model, config: DistillConfig, weights, shared, pictures: Path, call) -> StudentCard:
    text = Pictures(pictures, config, 0, 1)[0].get("encoder_hidden_states")
    return StudentCard(
        student=config.student,
        radius=config.radius,
        pool=config.pool,
        agents=config.agents,
        feature_map=config.feature_map,
        gate=config.gate,
        layers=weights.names,
        base=config.model,
        base_class=type(model).__name__,
        base_fingerprint=fingerprint(model),
        text=0 if text is None else text.shape[0],
        size=(call["height"], call["width"]),
        layer_steps=config.layer_steps,
        steps=config.steps,
        versions=versions(),
    )
