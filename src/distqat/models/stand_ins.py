"""What stands in a stage's model for the modules of other stages: they compute nothing and hold nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AbsentBlock(nn.Module):
    """In place of a block of another stage: hands on what it gets, as a block of the family would.

    So the list of blocks is as long as in the whole model, and whatever the family looks up by the number of
    a block (its kind of attention, its mask) is right.
    """

    def __init__(self, block: nn.Module, returns: int) -> None:
        """`returns` as in `Outline`."""
        super().__init__()
        for name, value in vars(block).items():  # some families ask a block for its kind
            if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self._beside: list[object] | None = [None] * (returns - 1) if returns else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing is computed."""
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if self._beside is None else (hidden, *self._beside)


class AbsentModule(nn.Module):
    """In place of a module of another stage: gives back what it gets, or zero in place of an embedding."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self._adds_nothing = isinstance(replaced, nn.Embedding)

    def forward(self, first: Any = None, *_: Any, **__: Any) -> Any:
        """What is made of it is thrown away before it reaches a block, or behind the last one."""
        if not self._adds_nothing:
            return first
        # Some families ask an embedding of positions by a shape; a number may be anywhere.
        return torch.zeros((), device=first.device if isinstance(first, Tensor) else None)

    @property
    def weight(self) -> Tensor:
        """Some families ask the head for its dtype."""
        return torch.empty(0)
