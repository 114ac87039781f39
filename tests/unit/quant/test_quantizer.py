from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distqat.errors import QuantError
from distqat.quant import ActivationQuantizer, WeightQuantizer


def activation(bits: int = 8, signed: bool | str = "auto") -> ActivationQuantizer:
    return ActivationQuantizer("front.conv.input_quant", bits=bits, signed=signed)  # type: ignore[arg-type]


def begun(x: Tensor, bits: int = 8, signed: bool | str = "auto") -> ActivationQuantizer:
    quantizer = activation(bits, signed)
    quantizer.observe(x)
    quantizer.begin_calibrated(*quantizer.initial_step())
    return quantizer


def state_of(quantizer: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_values_pass_and_are_counted_while_calibrating() -> None:
    quantizer, x = activation(), torch.randn(4, 7)
    assert quantizer(x) is x
    assert int(quantizer.batches) == 1
    assert int(quantizer.counts.sum()) == 28
    quantizer.eval()
    quantizer(x)
    assert int(quantizer.batches) == 1


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 4),
        torch.empty(0, 4),
        torch.tensor([1.0, math.nan]),
        torch.tensor([1.0, math.inf]),
    ],
)
def test_a_batch_without_real_data_changes_nothing(x: Tensor) -> None:
    quantizer = activation()
    quantizer.observe(torch.randn(5))
    before = state_of(quantizer)
    quantizer.observe(x)
    quantizer(x)
    assert same(state_of(quantizer), before)


def test_activation_needs_real_data_and_says_where() -> None:
    quantizer = activation()
    quantizer.observe(torch.zeros(3))
    with pytest.raises(QuantError, match=r"front\.conv\.input_quant has seen no real data"):
        quantizer.initial_step()


@given(st.permutations([torch.arange(start, start + 3.0) for start in range(5)]))
def test_the_order_of_batches_does_not_matter(batches: list[Tensor]) -> None:
    quantizer, sorted_quantizer = activation(), activation()
    for batch in batches:
        quantizer.observe(batch)
    for batch in sorted(batches, key=lambda b: float(b[0])):
        sorted_quantizer.observe(batch)
    assert same(state_of(quantizer), state_of(sorted_quantizer))


@pytest.mark.parametrize(
    ("x", "option", "codes"),
    [
        (torch.linspace(0.01, 1, 50), "auto", (0, 15)),
        (torch.linspace(0.01, 1, 50) - 0.1, "auto", (-7, 7)),
        (torch.linspace(0.01, 1, 50), True, (-7, 7)),
        (torch.linspace(0.01, 1, 50) - 0.1, False, (0, 15)),
    ],
)
def test_sign(x: Tensor, option: bool | str, codes: tuple[int, int]) -> None:
    assert begun(x, bits=4, signed=option).code_range == codes


def test_unsigned_without_anything_positive_is_refused() -> None:
    quantizer = activation(signed=False)
    quantizer.observe(-torch.rand(5) - 0.1)
    with pytest.raises(QuantError, match="no positive value"):
        quantizer.initial_step()


def test_states_follow_each_other_and_never_go_back() -> None:
    quantizer, x = activation(), torch.randn(4, 30)
    assert quantizer.state == "calibrating"
    with pytest.raises(QuantError, match="activate it before"):
        quantizer.freeze()
    quantizer.observe(x)
    step, signed, offset = quantizer.initial_step()
    quantizer.begin_calibrated(step, signed, offset)
    assert quantizer.state == "active"
    torch.testing.assert_close(quantizer.step, step)
    with pytest.raises(QuantError, match="only a calibrating quantizer observes"):
        quantizer.observe(x)
    with pytest.raises(QuantError, match="only a calibrating quantizer can be activated"):
        quantizer.begin_calibrated(step, signed, offset)
    quantizer(x).sum().backward()
    assert quantizer.log_step.grad is not None
    quantizer.log_step.grad = None
    quantizer.freeze()
    assert quantizer.state == "frozen"
    x.requires_grad_()
    quantizer(x).sum().backward()
    assert quantizer.log_step.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_step_is_refused(step: float) -> None:
    quantizer = activation()
    with pytest.raises(QuantError, match="no positive finite step"):
        quantizer.begin(torch.tensor(step))
    assert quantizer.state == "calibrating"


@pytest.mark.parametrize("stage", ["calibrating", "active", "frozen"])
def test_a_state_dict_carries_everything_to_the_bit(stage: str) -> None:
    x = torch.randn(4, 30)
    quantizer, joiner = activation(bits=4), activation(bits=4)
    quantizer.observe(x)
    if stage != "calibrating":
        quantizer.begin_calibrated(*quantizer.initial_step())
    if stage == "frozen":
        quantizer.freeze()
    joiner.load_state_dict(quantizer.state_dict())
    assert joiner.state == stage
    assert same(state_of(joiner), state_of(quantizer))
    assert torch.equal(joiner(x), quantizer(x))


def test_a_snapshot_of_the_buffers_undoes_an_aborted_attempt() -> None:
    quantizer = activation()
    quantizer(torch.randn(5))
    snapshot = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    quantizer(torch.randn(5))
    with torch.no_grad():
        for name, buffer in quantizer.named_buffers():
            buffer.copy_(snapshot[name])
    assert same({**snapshot}, dict(quantizer.named_buffers()))
    assert int(quantizer.batches) == 1


def test_gradients_of_microbatches_add_up() -> None:
    x = torch.randn(6, 30)
    quantizer = begun(x)
    quantizer(x).square().sum().backward()
    assert quantizer.log_step.grad is not None
    whole = quantizer.log_step.grad.clone()
    quantizer.log_step.grad = None
    for part in x.split([1, 3, 2]):
        quantizer(part).square().sum().backward()
    torch.testing.assert_close(quantizer.log_step.grad, whole)


def test_the_gradient_scale_is_that_of_the_paper() -> None:
    x = torch.rand(2, 4, 5) + 0.1  # a sample has 20 features
    quantizer = begun(x, bits=4)
    y = quantizer(x)
    y.sum().backward()
    inside = x <= 15 * quantizer.step
    expected = (y - x * inside).sum() / math.sqrt(20 * 15)
    torch.testing.assert_close(quantizer.log_step.grad, expected.detach(), rtol=1e-3, atol=1e-6)
    weight = torch.randn(3, 8)
    weight_quantizer = WeightQuantizer("w", weight, bits=4, axis=0)
    assert weight_quantizer._grid.gradient_scale == pytest.approx(1 / math.sqrt(8 * 7))


def test_weights_are_symmetric_per_channel() -> None:
    weight = torch.randn(4, 6, 3, 3)
    quantizer = WeightQuantizer("front.conv.weight_quant", weight, bits=3, axis=0)
    assert quantizer(weight) is weight
    quantizer.begin(quantizer.initial_step(weight))
    codes = quantizer(weight) / quantizer.step.view(-1, 1, 1, 1)
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert int(codes.abs().max().round()) == 3


def test_empty_batches_and_scalars_pass() -> None:
    quantizer = begun(torch.randn(10))
    assert quantizer(torch.empty(0, 10)).shape == (0, 10)
    assert quantizer(torch.tensor(0.5)).shape == ()


def test_a_copy_has_a_life_of_its_own() -> None:
    quantizer = activation()
    quantizer.observe(torch.randn(5))
    twin = copy.deepcopy(quantizer)
    twin.begin_calibrated(*twin.initial_step())
    assert (quantizer.state, twin.state) == ("calibrating", "active")
    assert "active" in repr(twin)
