"""What a GPU can do at best, by its data sheet: the numbers behind the time floors.

Dense rates, half-precision products summed in float32, at boost clock. Sources: data sheets of the
NVIDIA A100 and H100 SXM, the H200, the HGX B200 and the AMD MI300X; NVIDIA's whitepapers on Ada and
RTX Blackwell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["GPU", "GPUS", "gpu_of"]


@dataclass(frozen=True, slots=True)
class GPU:
    """Peak FLOP/s in half precision (matrix units) and float32 (vector units), and bytes/s.

    `architecture` is the class whose tile shapes the Triton kernels use on it.
    """

    name: str
    architecture: str
    half: float
    single: float
    bandwidth: float

    def flops(self, dtype: torch.dtype) -> float:
        """Peak FLOP/s of products of a type."""
        return self.half if dtype.itemsize == 2 else self.single

    def floor(self, flops: float, num_bytes: float, dtype: torch.dtype) -> float:
        """Seconds that no kernel can beat: arithmetic and memory perfectly overlapped."""
        return max(flops / self.flops(dtype), num_bytes / self.bandwidth)


GPUS = (
    GPU("A100", "sm_80", 312e12, 19.5e12, 2.039e12),
    GPU("H100", "sm_90", 989.4e12, 66.9e12, 3.35e12),
    GPU("H200", "sm_90", 989.4e12, 66.9e12, 4.8e12),
    GPU("B200", "sm_100", 2250e12, 75e12, 8e12),
    GPU("4090", "sm_80", 165.2e12, 82.6e12, 1.008e12),
    GPU("5090", "sm_80", 209.5e12, 104.8e12, 1.792e12),
    GPU("MI300X", "gfx942", 1307.4e12, 163.4e12, 5.3e12),
)


def gpu_of(name: str) -> GPU | None:
    """The GPU that a device's name tells, such as "NVIDIA H200"; None for one not listed."""
    words = name.upper().replace("-", " ").split()
    return next((gpu for gpu in GPUS if gpu.name in words), None)
