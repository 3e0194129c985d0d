"""What is put on a pipeline and comes off again: by `remove`, or at the end of a `with` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Undoable"]


class Undoable(ABC):
    """A change that `remove` takes back, as leaving `with` does, after an exception too."""

    @abstractmethod
    def remove(self) -> None:
        """Put everything back. Safe to call again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
