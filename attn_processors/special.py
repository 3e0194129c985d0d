"""What may be special about a redirected softmax-attention call."""

from __future__ import annotations

__all__ = ["BIASED", "MASKED", "SPLIT"]

# what padding that a model hides looks like; any other mask is a bias added to the logits
MASKED = "the call carries a boolean attention mask"
BIASED = "the call carries an attention mask"
# diffusers' context parallelism: q, k and v hold one rank's share of the tokens
SPLIT = "the call is split over ranks (context parallelism)"
