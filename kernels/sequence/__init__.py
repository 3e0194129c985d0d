"""Local and foveated attention of a call whose tokens are split over the ranks of a process group.

From CLEAR's patch parallelism (arXiv:2412.16112, section 3.4), where only rows near the border of a
patch are exchanged. Text queries are merged by their log-sum-exp, which is exact, where CLEAR
averages them over the ranks (Eq. 7).
"""

from .attention import sequence_foveated_attention, sequence_local_attention
from .cost import foveated_bytes, gathered_bytes, local_bytes, ulysses_bytes
from .exchange import Exchange
from .shard import Shard

__all__ = [
    "Exchange",
    "Shard",
    "foveated_bytes",
    "gathered_bytes",
    "local_bytes",
    "sequence_foveated_attention",
    "sequence_local_attention",
    "ulysses_bytes",
]
