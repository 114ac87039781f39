"""Loss scaling over the whole pipeline: the trainer holds the scale, stages report overflow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LossScaler:
    """Dynamic loss scale as in `torch.amp.GradScaler`: halved at overflow, doubled after steps without one.

    Micikevicius et al., Mixed Precision Training (arXiv:1710.03740, section 3.2). A scale of 1 that does not
    grow means: no scaling.
    """

    scale: float = 1.0
    growth_interval: int = 0
    _good_steps: int = 0

    @classmethod
    def for_fp16(cls) -> LossScaler:
        """The defaults of `GradScaler`."""
        return cls(scale=65536.0, growth_interval=2000)

    def update(self, *, overflow: bool) -> None:
        """After each step."""
        if self.growth_interval == 0:
            return
        if overflow:
            self.scale, self._good_steps = max(self.scale / 2, 1.0), 0
            return
        self._good_steps += 1
        if self._good_steps == self.growth_interval:
            self.scale, self._good_steps = self.scale * 2, 0
