"""What a figure was measured on: hardware, threads and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["hardware", "machine", "slug", "versions"]

PACKAGES = (
    "foveate",
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "natten",
    "comfy-kitchen",
    "sageattention",
    "flash-attn",
)


def machine(device: str, threads: int) -> dict[str, object]:
    """JSON fields; packages that are not installed are left out."""
    about = hardware(device, threads)
    if device == "cpu":
        about["clock"] = "processor time" if threads == 1 else "wall time"
    return about | versions()


def hardware(device: str, threads: int) -> dict[str, object]:
    """JSON fields of a device."""
    about: dict[str, object] = {"device": _name(device)}
    if device == "cpu":
        about |= {
            "vcpus": os.cpu_count(),
            "threads": threads,
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
    elif device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        about["capability"] = f"{properties.major}.{properties.minor}"
        about["memory_gb"] = round(properties.total_memory / 1e9, 1)
    return about


def versions() -> dict[str, str]:
    """Of Python and the packages that matter and are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
