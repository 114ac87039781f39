"""Distillation: learning from the distributions that a teacher gives (arXiv:1503.02531, section 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergence(logits: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """KL(teacher || model) of softmax(logits / temperature) over the last dimension, in float32 nats."""
    log_q, log_p = (F.log_softmax(each.float() / temperature, dim=-1) for each in (logits, teachers))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
