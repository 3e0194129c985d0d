"""One stage of a distillation: the training loop, by accelerate on any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import trange

from .checkpoint import load_newest, save_checkpoint
from .config import DistillConfig
from .data import Pictures
from .distiller import Distiller
from .log import Log, peak_memory

__all__ = ["Stage", "make_accelerator", "run_stage", "stages_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """ "layers" trains each layer on the teacher's inputs of it, "whole" end to end."""

    name: str
    steps: int
    learning_rate: float

    @property
    def layerwise(self) -> bool:
        return self.name == "layers"


def stages_of(config: DistillConfig) -> list[Stage]:
    """The stages that have steps."""
    stages = (
        Stage(name="layers", steps=config.layer_steps, learning_rate=config.layer_rate),
        Stage(name="whole", steps=config.steps, learning_rate=config.rate),
    )
    return [stage for stage in stages if stage.steps]


def make_accelerator(config: DistillConfig) -> Accelerator:
    """Device, processes and sharding come from `accelerate launch` and its configuration."""
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulate
    )
    sharding = (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.distributed_type in sharding and (config.ema or config.picture_every):
        raise NotImplementedError(
            "ema and picture_every need whole parameters on every process, which FSDP and "
            "DeepSpeed do not keep; set both to 0"
        )
    if accelerator.distributed_type in sharding and len(stages_of(config)) > 1:
        raise NotImplementedError(
            "under FSDP and DeepSpeed a run has one stage: set layer_steps or steps to 0, and give "
            "the student of the first run as start to the second"
        )
    return accelerator


class _Training:
    """Everything of a stage that changes from step to step, and what accelerate makes of it."""

    def __init__(self, distiller: Distiller, stage: Stage, config: DistillConfig) -> None:
        self.stage, self.config = stage, config
        self.accelerator = make_accelerator(config)
        optimizer = torch.optim.AdamW(
            distiller.parameters(), stage.learning_rate, weight_decay=config.weight_decay
        )
        self.rates = get_scheduler(
            "cosine" if config.schedule == "cosine" else "constant_with_warmup",
            optimizer,
            num_warmup_steps=config.warmup,
            num_training_steps=stage.steps,
        )
        self.module, self.optimizer = self.accelerator.prepare(distiller, optimizer)
        # not prepared: accelerate would step it once for every process
        self.accelerator.register_for_checkpointing(self.rates)
        self.parameters = list(self.module.parameters())
        self.average = EMAModel(self.parameters, config.ema) if config.ema else None
        if self.average is not None:
            self.average.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.average)

    def step(self, batches: Iterator[dict[str, torch.Tensor]], meter: _Meter) -> None:
        """One step of the optimiser."""
        accelerator = self.accelerator
        for _ in range(self.config.accumulate):
            with accelerator.accumulate(self.module), _fast_attention(accelerator.device):
                losses = self.module(next(batches), self.stage.layerwise)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.parameters, self.config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            meter.add(losses)
        meter.end_step(self.rates.get_last_lr()[0])
        self.rates.step()
        if self.average is not None:
            self.average.step(self.parameters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the place of the parameters."""
        if self.average is None:
            yield
            return
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            self.average.restore(self.parameters)

    def finish(self) -> dict[str, torch.Tensor]:
        """The state of the student that is kept: the average, where there is one."""
        if self.average is not None:
            self.average.copy_to(self.parameters)
        state = self.accelerator.get_state_dict(self.module)
        self.accelerator.free_memory()
        return {name.removeprefix("student."): tensor for name, tensor in state.items()}


def run_stage(
    distiller: Distiller,
    stage: Stage,
    pictures: Path,
    config: DistillConfig,
    log: Log,
    show: Callable[[str], None],
) -> dict[str, torch.Tensor]:
    """Train, from the newest checkpoint on; returns the state of the student that is kept.

    `show(name)` is called on the main process every `picture_every` steps, with the average in
    place.
    """
    training = _Training(distiller, stage, config)
    accelerator, folder = training.accelerator, Path(config.out) / stage.name
    is_main = accelerator.is_main_process
    start = load_newest(accelerator, folder)
    if is_main:
        log.rewind(stage.name, start)
    batches = _batches(accelerator, pictures, config, start, stage.steps)
    meter = _Meter(accelerator, log, stage, config.log_every, start)
    span = {"initial": start, "total": stage.steps}
    for step in trange(start, stage.steps, desc=stage.name, disable=not is_main, **span):
        training.step(batches, meter)
        done, is_last = step + 1, step + 1 == stage.steps
        if done % config.save_every == 0 or is_last:
            save_checkpoint(accelerator, folder, done)
        if config.picture_every and (done % config.picture_every == 0 or is_last):
            with training.averaged():
                if is_main:
                    show(f"{stage.name}-{done:07d}")
            accelerator.wait_for_everyone()
    return training.finish()


def _batches(
    accelerator: Accelerator, pictures: Path, config: DistillConfig, start: int, stop: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the steps from `start`: process r of R takes every R-th of one numbered row."""
    per_step = config.batch * config.accumulate * accelerator.num_processes
    samples = Pictures(pictures, config, start * per_step, stop * per_step)
    return iter(accelerator.prepare(DataLoader(samples, config.batch)))


def _fast_attention(device: torch.device):
    # the fused attention's backward is slow in bfloat16 on a CPU; around the backward too, where
    # gradient checkpointing runs forwards again
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class _Meter:
    """Mean losses over processes and `every` steps, into the log."""

    def __init__(
        self, accelerator: Accelerator, log: Log, stage: Stage, every: int, start: int
    ) -> None:
        self.accelerator, self.log, self.stage, self.every = accelerator, log, stage, every
        self.step = start
        self._forget()

    def _forget(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.batches = self.steps = 0
        self.since = time.perf_counter()

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach().float()
        self.batches += 1

    def end_step(self, rate: float) -> None:
        self.step += 1
        self.steps += 1
        if self.step % self.every and self.step != self.stage.steps:
            return
        means = {
            name: float(self.accelerator.reduce(total / self.batches, "mean"))
            for name, total in self.sums.items()
        }
        if self.accelerator.is_main_process:
            row = {"stage": self.stage.name, "step": self.step, **means, "rate": rate}
            row["seconds_per_step"] = round((time.perf_counter() - self.since) / self.steps, 4)
            row["peak_memory_mib"] = peak_memory(self.accelerator.device)
            self.log.write(row)
        self._forget()
