"""Inputs as a model rarely meets them: with noise, moved, out of order. For checks of exported models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def noisy(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise with `share` of the deviation of `x`; whole numbers stay as they are."""
    if not x.is_floating_point():
        return x
    return x + share * float(x.std(unbiased=False)) * torch.randn(x.shape, generator=generator)


def moved_pictures(x_BCHW: Tensor, generator: torch.Generator, black: float | Tensor = -1.0) -> Tensor:
    """Rotated by up to 15 degrees, scaled by up to 15 %, moved by up to an eighth, with noise of 0.1.

    `black` is the value of what comes in from outside of the picture.
    """
    count = len(x_BCHW)

    def uniform(bound: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, scale = uniform(math.pi / 12), 1 + uniform(0.15)
    theta_B23 = torch.zeros(count, 2, 3)
    theta_B23[:, 0, 0], theta_B23[:, 0, 1] = angle.cos() * scale, -angle.sin() * scale
    theta_B23[:, 1, 0], theta_B23[:, 1, 1] = angle.sin() * scale, angle.cos() * scale
    theta_B23[:, 0, 2], theta_B23[:, 1, 2] = uniform(0.25), uniform(0.25)  # the picture is 2 wide
    grid = F.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    moved = F.grid_sample(x_BCHW - black, grid, align_corners=False) + black
    return moved + 0.1 * torch.randn(moved.shape, generator=generator)


def mixed_tokens(x_BT: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Random tokens in every second sequence, the tokens of the others in another order."""
    mixed_BT = x_BT[:, torch.randperm(x_BT.shape[1], generator=generator)]
    mixed_BT[::2] = torch.randint(vocabulary, mixed_BT[::2].shape, generator=generator)
    return mixed_BT
