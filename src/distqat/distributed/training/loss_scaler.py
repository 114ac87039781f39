"""Loss scaling over the whole pipeline: the trainer holds the scale, stages report overflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distqat.topology.snapshot import ServerRecord

FP16 = "fp16"
"""In the metrics of a server's record: it computes in float16, where small gradients become zero."""


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
    def for_fp16(cls, state: Mapping[str, Any] | None = None) -> LossScaler:
        """The defaults of `GradScaler`, or what `state()` gave in an earlier life."""
        known = state or {}
        scale, good = float(known.get("scale", 65536.0)), int(known.get("good_steps", 0))
        return cls(scale=scale, growth_interval=2000, _good_steps=good)

    def state(self) -> dict[str, Any]:
        """What a later life goes on from."""
        return {"scale": self.scale, "good_steps": self._good_steps}

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


def wants_scaling(servers: Iterable[ServerRecord]) -> bool:
    """Whether losses are to be scaled over these servers: it is they who compute, on devices of their own."""
    return any(server.metrics.get(FP16) for server in servers)
