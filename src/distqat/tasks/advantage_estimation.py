"""Generalised advantage estimation. Schulman et al., arXiv:1506.02438, eq. 16."""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(
    rewards_TB: Tensor,
    values_TB: Tensor,
    ended_TB: Tensor,
    following_B: Tensor,
    *,
    gamma: float,
    decay: float,
) -> Tensor:
    """Exponentially weighted sums of temporal differences, [T, B].

    Args:
        rewards_TB: of each step; where an episode was cut off, with gamma times the value of where it stood.
        values_TB: of the states before the steps.
        ended_TB: whether the episode ended with the step; what comes after belongs to another.
        following_B: values of the states after the last step.
        gamma, decay: discount, and lambda.
    """
    result_TB = torch.zeros_like(rewards_TB)
    next_value_B, sum_B = following_B, torch.zeros_like(following_B)
    for step in reversed(range(len(rewards_TB))):
        goes_on_B = 1.0 - ended_TB[step].to(rewards_TB.dtype)
        delta_B = rewards_TB[step] + gamma * next_value_B * goes_on_B - values_TB[step]
        sum_B = delta_B + gamma * decay * goes_on_B * sum_B
        result_TB[step] = sum_B
        next_value_B = values_TB[step]
    return result_TB
