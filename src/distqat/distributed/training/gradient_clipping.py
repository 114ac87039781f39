"""Clipping of the gradient of a whole pipeline by its norm, from the norms that the stages answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def norm_and_factor(norms: Sequence[Tensor], max_norm: float | None, scale: float) -> tuple[float, float]:
    """Norm of the whole gradient, and what to multiply gradients with: unscaling and clipping in one.

    Args:
        norms: per stage the norm of every parameter's gradient, float32 [P], of gradients times `scale`.
        max_norm: the norm that the gradient has at most afterwards; None: it is not clipped.
        scale: the loss scale.
    Computed as `torch.nn.utils.clip_grad_norm_` does, in float32 and parameter by parameter, so that a
    clipped step has the bits of an unsplit model's.
    """
    total = torch.linalg.vector_norm(torch.cat(list(norms))) / scale
    if max_norm is None:
        return float(total), 1.0 / scale
    return float(total), float(torch.clamp(max_norm / (total + 1e-6), max=1.0)) / scale
