"""Generalised advantages against the definition: sums over what follows in the same episode."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distqat.tasks.advantage_estimation import advantages


def by_definition(
    rewards: Tensor, values: Tensor, ended: Tensor, following: Tensor, gamma: float, decay: float
) -> Tensor:
    """arXiv:1506.02438, eq. 16: for each step the sum over l of (gamma lambda)^l delta, up to the end."""
    steps, copies = rewards.shape
    result = torch.zeros_like(rewards)
    for copy in range(copies):
        for start in range(steps):
            weight = 1.0
            for step in range(start, steps):
                after = following[copy] if step + 1 == steps else values[step + 1, copy]
                after = torch.zeros(()) if ended[step, copy] else after
                result[start, copy] += weight * (rewards[step, copy] + gamma * after - values[step, copy])
                if ended[step, copy]:
                    break
                weight *= gamma * decay
    return result


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 999), st.floats(0, 1), st.floats(0, 1))
def test_a_naive_loop(steps: int, copies: int, seed: int, gamma: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(steps, copies, generator=generator) for _ in range(2))
    ended = torch.rand(steps, copies, generator=generator) < 0.3
    following = torch.randn(copies, generator=generator)
    found = advantages(rewards, values, ended, following, gamma=gamma, decay=decay)
    expected = by_definition(rewards, values, ended, following, gamma, decay)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_decay_it_is_the_return_less_the_value() -> None:
    rewards = torch.tensor([[1.0], [2.0], [4.0]])
    values, ended = torch.tensor([[0.5], [0.25], [0.125]]), torch.tensor([[False], [True], [False]])
    found = advantages(rewards, values, ended, torch.tensor([8.0]), gamma=0.5, decay=1.0)
    assert found.flatten().tolist() == [1 + 0.5 * 2 - 0.5, 2 - 0.25, 4 + 0.5 * 8 - 0.125]
