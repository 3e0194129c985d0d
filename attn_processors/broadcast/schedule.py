"""The evaluations of one run: the scheduler's timesteps, and whether every step adds noise."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Schedule", "read_schedule"]

# in the names of schedulers that add noise in every step
_NOISY = ("Ancestral", "SDE", "Sde", "LCM", "TCD", "DDPM", "CogVideoXDPM", "SASolver", "UnCLIP")


@dataclass(frozen=True, slots=True)
class Schedule:
    """timesteps: one an evaluation, as the scheduler lists them; second-order ones repeat some.

    is_noisy: fresh noise in every step, so that one output says less about the next.
    name: class of the scheduler.
    start: the first evaluation that runs; later than 0 where an image is changed in part.
    """

    timesteps: tuple[float, ...]
    is_noisy: bool = False
    name: str = ""
    start: int = 0

    def __post_init__(self) -> None:
        if not self.timesteps:
            raise ValueError(
                "the schedule has zero steps; call scheduler.set_timesteps(n) with n >= 1 first"
            )

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def remaining(self) -> int:
        """How many evaluations run."""
        return len(self) - self.start


def read_schedule(scheduler: object) -> Schedule:
    """The schedule that a diffusers scheduler holds now."""
    name = type(scheduler).__name__
    config = getattr(scheduler, "config", {})
    is_sde = str(config.get("algorithm_type", "")).startswith("sde")
    is_noisy = is_sde or bool(config.get("stochastic_sampling", False))
    is_noisy = is_noisy or any(part in name for part in _NOISY)
    return Schedule(tuple(map(float, scheduler.timesteps)), is_noisy, name)
