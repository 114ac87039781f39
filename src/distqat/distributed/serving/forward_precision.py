"""Which number format the forward pass runs in: fp32, bf16 autocast, or fp16 autocast with loss scaling."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)


CPU = torch.device("cpu")


@dataclass(frozen=True)
class ForwardPrecision:
    """`autocast` None means fp32; `scaled` asks the trainer for loss scaling (Micikevicius et al., 2018)."""

    device: torch.device = CPU
    autocast: torch.dtype | None = None
    scaled: bool = False

    @classmethod
    def resolve(cls, name: str, device: torch.device) -> ForwardPrecision:
        """The precision of `data.precision` on this device; fp16-mixed on a CPU is bf16, said once."""
        if name == "fp32":
            return cls(device)
        if name == "bf16":
            return cls(device, torch.bfloat16)
        if device.type == "cpu":
            logger.info("precision fp16-mixed means bf16 on a CPU: it needs no loss scaling there")
            return cls(device, torch.bfloat16)
        return cls(device, torch.float16, scaled=True)

    def context(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)
