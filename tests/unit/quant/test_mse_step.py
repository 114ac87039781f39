from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distqat.quant import mse_step


def squared_error(x: Tensor, step: float, qmin: int, qmax: int) -> float:
    return float(((x / step).round().clamp(qmin, qmax) * step - x).square().mean())


def best_error(x: Tensor, qmin: int, qmax: int) -> float:
    """By brute force over a grid of 1/32 octave."""
    steps = float(x.abs().max()) / qmax * torch.exp2(-torch.arange(-4, 256) / 32)[:, None]
    return float(((x / steps).round().clamp(qmin, qmax) * steps - x).square().mean(1).min())


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    cut=st.integers(0, 40),
)
def test_histograms_of_parts_add_up_in_any_order(values: list[float], cut: int) -> None:
    x = torch.tensor(values)
    whole = mse_step.histogram(x)
    assert int(whole.sum()) == len(values)
    assert torch.equal(mse_step.histogram(x[cut:]) + mse_step.histogram(x[:cut]), whole)
    assert torch.equal(mse_step.histogram(x.flip(0)), whole)


def test_each_value_lies_in_its_bin() -> None:
    x = torch.exp2(torch.empty(300).uniform_(mse_step.LOWEST_EXPONENT, mse_step.HIGHEST_EXPONENT))
    edges = mse_step._edges()
    for value in x:
        index = int(mse_step.histogram(value)[0].argmax())
        assert float(edges[index - 1]) <= float(value) <= float(edges[index])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, -0.0], (False, False)),
        ([1e-12, -1e-12], (False, False)),
        ([0.0, 1.0], (True, False)),
        ([-1e-3], (False, True)),
        ([1e30, -1e30], (True, True)),
    ],
)
def test_what_was_seen(values: list[float], expected: tuple[bool, bool]) -> None:
    assert mse_step.seen_values(mse_step.histogram(torch.tensor(values))) == expected


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "uniform", "outlier"])
@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_the_step_from_a_histogram_is_about_the_best(bits: int, kind: str, scale: float) -> None:
    x = torch.randn(1000)
    x = {
        "normal": x,
        "relu": x.relu(),
        "heavy": x**3,
        "uniform": torch.rand(1000) - 0.5,
        "outlier": torch.cat([x, torch.tensor([60.0])]),
    }[kind] * scale
    signed = kind != "relu"
    qmax = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    qmin = -qmax if signed else 0
    step = mse_step.histogram_step(mse_step.histogram(x), qmin, qmax)
    assert squared_error(x, step, qmin, qmax) <= 1.1 * best_error(x, qmin, qmax)


@pytest.mark.parametrize("qmax", [1, 7, 127])
def test_the_step_of_each_channel_is_about_the_best(qmax: int) -> None:
    weight = torch.randn(6, 300) * torch.tensor([1e-5, 1e-2, 1.0, 1.0, 30.0, 1e4])[:, None]
    weight[2] = weight[2] ** 3
    for row, step in zip(weight, mse_step.channel_steps(weight, qmax), strict=True):
        assert squared_error(row, float(step), -qmax, qmax) <= 1.1 * best_error(row, -qmax, qmax)


def test_channels_of_zeros_get_a_step_too() -> None:
    weight = torch.randn(3, 50)
    weight[1] = 0
    steps = mse_step.channel_steps(weight, 127)
    assert float(steps[1]) == pytest.approx(float(steps[[0, 2]].mean()))
    assert bool((mse_step.channel_steps(torch.zeros(3, 50), 127) > 0).all())
