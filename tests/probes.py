"""What only tests need: a processor that writes down its calls, one of zeros, a look inside."""

import dataclasses

import torch.nn.functional as F

from foveate.attn_processors.base import AttnProcessor
from foveate.kernels.counts import KeyCount


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GainAttnProcessor(AttnProcessor):
    """Dense attention times `gain`; keeps the layout of every call."""

    gain: float = 1.0
    calls: list = dataclasses.field(default_factory=list)

    def attend(self, q, k, v, *, layout, scale):
        self.calls.append(layout)
        return F.scaled_dot_product_attention(q, k, v, scale=scale) * self.gain

    def count_keys(self, layout):
        return KeyCount(layout.num_tokens, layout.num_tokens)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class ZeroAttnProcessor(AttnProcessor):
    """Attends to nothing."""

    def attend(self, q, k, v, *, layout, scale):
        return v * 0

    def count_keys(self, layout):
        return KeyCount(0, 0)


def part_of(attention):
    """What is trained for an attention module under `apply`."""
    return attention.processor.attend.__self__.processor.part
