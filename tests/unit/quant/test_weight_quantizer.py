"""Steps of weights: per channel, per group, and held to what the weight needs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from distqat.quant import QuantOptions, WeightQuantizer, activate, quantize_module
from distqat.quant.fake_quantize import fake_quantize
from distqat.quant.weight_quantizer import least_range


def active(weight: torch.Tensor, bits: int, axis: int | None, group: int | None = None) -> WeightQuantizer:
    quantizer = WeightQuantizer("w", weight, bits=bits, axis=axis, group=group)
    quantizer.begin(quantizer.initial_step(weight))
    return quantizer


@given(seed=st.integers(0, 50), group=st.sampled_from([4, 8, 24]), bits=st.sampled_from([2, 4, 8]))
def test_a_group_is_quantized_as_a_row_of_its_own(seed: int, group: int, bits: int) -> None:
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(seed))
    grouped = active(weight, bits, 0, group)
    rows = weight.view(-1, group)
    alone = active(rows, bits, 0)
    assert torch.equal(grouped.step.view(-1), alone.step)
    assert torch.equal(grouped(weight).view(-1, group), alone(rows))


def test_steps_of_groups_learn_as_those_of_rows() -> None:
    weight = torch.randn(3, 16, requires_grad=True)
    grouped = active(weight, 4, 0, 8)
    upstream = torch.randn(3, 16)
    grouped(weight).backward(upstream)
    log_step = grouped.log_step.detach().flatten().requires_grad_()
    rows = weight.detach().view(-1, 8).requires_grad_()
    scale = (8 * 7) ** -0.5
    fake_quantize(rows, log_step, -7, 7, axis=0, gradient_scale=scale).backward(upstream.view(-1, 8))
    assert torch.equal(grouped.log_step.grad.flatten(), log_step.grad)  # type: ignore[union-attr,arg-type]
    assert torch.equal(weight.grad.view(-1, 8), rows.grad)  # type: ignore[union-attr,arg-type]


def test_a_transposed_weight_has_the_same_groups() -> None:
    weight = torch.randn(6, 32)
    plain, turned = active(weight, 4, 0, 16), active(weight.t().contiguous(), 4, 1, 16)
    assert torch.equal(plain.step, turned.step)
    assert torch.equal(plain(weight), turned(weight.t().contiguous()).t())
    assert torch.equal(plain.step_of_each(weight), turned.step_of_each(weight.t()).t())


@pytest.mark.parametrize(("axis", "group"), [(None, None), (0, None), (1, None), (0, 8), (1, 8)])
def test_values_are_codes_times_the_step_of_each(axis: int | None, group: int | None) -> None:
    weight = torch.randn(16, 16)
    quantizer = active(weight, 4, axis, group)
    codes = quantizer(weight) / quantizer.step_of_each(weight)
    assert torch.allclose(codes, codes.round(), atol=1e-5)
    assert int(codes.abs().max().round()) == 7


def test_smaller_groups_are_closer() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 128)
    errors = [
        float((active(weight, 4, 0, group)(weight) - weight).norm().detach()) for group in (None, 64, 32)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_the_option_names_linear_layers_of_fitting_width() -> None:
    stage = nn.Sequential(nn.Linear(64, 4), nn.Linear(40, 4), nn.Conv1d(64, 4, 1), Conv1D(4, 64))
    options = QuantOptions.model_validate(
        {"weight": {"granularity": "per_group", "group": 32, "bits": 4}, "first_last_bits": 4}
    )
    report = quantize_module(stage, options, stage="s", first=True, last=True)
    assert report.ungrouped == ("1",)
    assert "per channel, not per group: 1 (1 ... 1)" in str(report)
    groups = [layer.weight_quant.group for layer in stage]  # type: ignore[union-attr]
    assert groups == [32, None, None, 32]
    assert stage[0].weight_quant.log_step.shape == (4, 2)  # type: ignore[union-attr]


def test_a_layer_with_groups_keeps_its_bias() -> None:
    layer = nn.Sequential(nn.Linear(32, 4))
    options = QuantOptions.model_validate({"weight": {"granularity": "per_group"}})
    quantize_module(layer, options, stage="s", first=True, last=True)
    layer(torch.randn(3, 32))
    activate(layer)
    for quantizer in (layer[0].weight_quant, layer[0].input_quant):
        quantizer.freeze()  # type: ignore[operator]
    assert layer[0].used_bias() is layer[0].bias  # type: ignore[operator]


@given(
    seed=st.integers(0, 50),
    bits=st.integers(2, 8),
    scale=st.floats(0.01, 100),
    group=st.sampled_from([None, 8]),
)
def test_steps_stay_within_what_the_weights_give(
    seed: int, bits: int, scale: float, group: int | None
) -> None:
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))
    quantizer = active(weight, bits, 0, group)
    moved = weight * scale  # as training moves them, faster than a logarithm learns
    largest = moved.view(-1, group or 16).abs().amax(1)
    quantizer(moved)
    reached = quantizer.step.flatten() * quantizer.qmax / largest
    assert bool((reached >= least_range(bits) - 1e-4).all())
    assert bool((reached <= 1 + 1e-4).all())


def test_a_step_of_8_bits_is_that_of_the_largest_weight_and_nothing_is_learned() -> None:
    weight = torch.randn(6, 16)
    quantizer = active(weight, 8, 0)
    assert not quantizer.log_step.requires_grad
    torch.testing.assert_close(quantizer.step, weight.abs().amax(1) / 127)
    doubled = quantizer(2 * weight)
    assert float((doubled - 2 * weight).norm() / (2 * weight).norm()) < 0.015
    assert int((doubled / quantizer.step_of_each(weight)).abs().max().round()) == 127


@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_may_be_used_twice_before_its_gradient_is_asked_for(bits: int) -> None:
    """A tied weight is, in one pass; and in a loop of one's own that adds up several losses."""
    weight = torch.randn(5, 6, requires_grad=True)
    quantizer = active(weight, bits, 0)
    (quantizer(weight).sum() + quantizer(weight).sum()).backward()
    twice = weight.grad
    weight.grad = None
    quantizer(weight).sum().mul(2.0).backward()
    assert twice is not None
    assert torch.equal(twice, weight.grad)


def test_a_learned_step_moves_freely_between_its_bounds() -> None:
    weight = torch.randn(6, 64)
    quantizer = active(weight, 4, 0)
    with torch.no_grad():
        quantizer.log_step.copy_((weight.abs().amax(1) * 0.8 / 7).log())
    before = quantizer.log_step.detach().clone()
    quantizer(weight).square().sum().backward()
    assert torch.equal(quantizer.log_step, before)
    assert quantizer.log_step.grad is not None
    assert bool(quantizer.log_step.grad.any())


def test_learned_steps_stand_once_frozen_whatever_the_weights_do() -> None:
    weight = torch.randn(6, 16)
    quantizer = active(weight, 4, 0)
    quantizer.freeze()
    before = quantizer.step.clone()
    quantizer(10 * weight)
    assert torch.equal(quantizer.step, before)
