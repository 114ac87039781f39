"""The int32 grid of biases, which training and export share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.quant.int32_bias import LIMIT, bias_codes, folded_step, multiples, snapped, stored_step

STEPS = st.floats(2**-20, 128, width=32)
BIASES = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=5)


@pytest.mark.parametrize(("bits", "times"), [(2, 127), (3, 42), (4, 18), (5, 8), (8, 1)])
def test_codes_of_few_bits_are_stored_as_multiples_that_fit_int8(bits: int, times: int) -> None:
    assert multiples(bits) == times
    assert times * (2 ** (bits - 1) - 1) <= 127


def test_a_grid_by_hand() -> None:
    """W4: 0.36 / 18 = 0.02, times the input's 0.5 is a grid of 0.01."""
    bias = torch.tensor([0.1234, -0.1278])
    stored = stored_step(torch.tensor([0.36, 0.36]), 4, torch.tensor(0.5), bias)
    codes, step = bias_codes(bias, torch.tensor(0.5), stored)
    torch.testing.assert_close(step, torch.full((2,), 0.01))
    assert codes.tolist() == [12, -13]


@given(weight=STEPS, taken=STEPS, bits=st.integers(2, 8), values=BIASES)
def test_a_snapped_bias_is_near_an_int32_and_snapping_again_changes_nothing(
    weight: float, taken: float, bits: int, values: list[float]
) -> None:
    bias, steps = torch.tensor(values, dtype=torch.float64), (torch.tensor(taken), torch.tensor(weight))
    stored = stored_step(steps[1], bits, steps[0], bias)
    codes, step = bias_codes(bias, steps[0], stored)
    assert float(codes.abs().max()) <= LIMIT * (1 + 1e-6)
    once = snapped(bias, *steps, bits)
    assert bool(((once - bias).abs() <= step.double() / 2 * (1 + 1e-9)).all())
    again = snapped(once, *steps, bits)
    torch.testing.assert_close(again, once, rtol=1e-7, atol=0)
    assert torch.equal(bias_codes(once, steps[0], stored)[0], codes)


def test_the_gradient_passes() -> None:
    bias = torch.randn(3, requires_grad=True)
    (snapped(bias, torch.tensor(0.1), torch.rand(3) + 0.1, 8) * torch.arange(3)).sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [0, 1, 2]


def test_a_channel_without_gamma_keeps_its_step() -> None:
    steps = folded_step(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([-2.0, 0.0, 1e-50], dtype=torch.float64))
    assert steps.tolist() == [1.0, 0.5, 0.5]
