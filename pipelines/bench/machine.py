"""What a figure was measured on: hardware, threads and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["machine", "slug"]

PACKAGES = (
    "foveate",
    "torch",
    "triton",
    "diffusers",
    "natten",
    "comfy-kitchen",
    "sageattention",
    "flash-attn",
)


def machine(device: str, threads: int) -> dict[str, object]:
    """JSON fields; packages that are not installed are left out."""
    about: dict[str, object] = {"device": _name(device)}
    if device == "cpu":
        about |= {
            "vcpus": os.cpu_count(),
            "threads": threads,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "clock": "processor time" if threads == 1 else "wall time",
        }
    about["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            continue
    return about


def slug(device: str, threads: int) -> str:
    """The machine in names of files, such as "cpu-1-thread" or "nvidia-h200"."""
    if device == "cpu":
        return f"cpu-{threads}-thread{'s' * (threads > 1)}"
    words = "".join(c if c.isalnum() else " " for c in _name(device).lower())
    return "-".join(words.split())


def _name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return device
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
