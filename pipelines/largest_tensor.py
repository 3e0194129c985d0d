"""The largest tensor that a computation allocates, in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LargestTensor"]


class LargestTensor(TorchDispatchMode):
    """Context manager; afterwards `num_bytes` is the size of the largest storage that came new.

    Views, in-place results and what a fused kernel keeps to itself do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **({} if kwargs is None else kwargs))
        old = {_address(x) for x in _tensors((args, kwargs))}
        new = (x for x in _tensors(result) if _address(x) not in old)
        self.num_bytes = max([self.num_bytes, *(x.untyped_storage().nbytes() for x in new)])
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _address(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()
