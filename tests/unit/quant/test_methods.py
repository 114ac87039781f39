"""Every method against its paper's formula by autograd, and the properties that all share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.errors import UnknownName
from distqat.quant import ActivationQuantizer, QuantOptions, activate, quantize_module, quantizers, set_state
from distqat.quant.int32_bias import snapped
from distqat.quant.methods import METHODS, get_method
from distqat.quant.quantizer import QuantizerSettings
from distqat.quant.token_quantizer import TokenQuantizer
from distqat.quant.weight_quantizer import WeightQuantizer

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.05),
}


def begun(x: Tensor, method: str, bits: int = 8, init: str = "mse") -> ActivationQuantizer:
    quantizer = ActivationQuantizer("a", bits=bits, signed="auto", how=QuantizerSettings(method, init))  # type: ignore[arg-type]
    quantizer.observe(x)
    quantizer.begin_calibrated(*quantizer.initial_step())
    return quantizer


def model(**section: Any) -> nn.Sequential:
    stage = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    quantize_module(stage, QuantOptions.model_validate(section), stage="full", first=True, last=True)
    return stage


def test_unknown_methods_are_named_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"'lsqq'; did you mean 'lsq'"):
        QuantOptions.model_validate({"activation": {"method": "lsqq"}})
    with pytest.raises(ValidationError, match="quantization method of weights 'pact'"):
        QuantOptions.model_validate({"weight": {"method": "pact"}})
    with pytest.raises(UnknownName, match="minmax"):
        get_method("min")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
@given(seed=st.integers(0, 200), bits=st.integers(2, 8))
def test_quantizing_again_changes_nothing(method: str, seed: int, bits: int) -> None:
    x = F.gelu(torch.randn(40, generator=torch.Generator().manual_seed(seed))) * 3
    quantizer = begun(x, method, bits)
    once = quantizer(x)
    assert torch.equal(quantizer(once), once)
    low, high = quantizer.code_range
    assert torch.equal((once / quantizer.step).round().clamp(low, high) * quantizer.step, once)
    assert high - low < 2**bits


def test_an_offset_halves_the_error_behind_a_gelu() -> None:
    x = F.gelu(torch.randn(4096))
    quantized = {name: begun(x, name, bits=4)(x).detach() for name in ("lsq", "lsq+")}
    errors = {name: float((y - x).square().mean()) for name, y in quantized.items()}
    assert errors["lsq+"] < 0.5 * errors["lsq"]
    assert begun(x, "lsq+", bits=4).code_range[0] < 0


def test_gradients_of_the_offset_are_those_of_the_paper() -> None:
    """Equation 7 of arXiv:2004.09576: 1 where x is clipped, 0 inside."""
    x = (torch.randn(3, 50) * 2).requires_grad_()
    quantizer = begun(x.detach().clamp(-0.3, 1.5), "lsq+", bits=4)
    assert quantizer.offset is not None
    g = torch.randn(3, 50)
    (quantizer(x) * g).sum().backward()
    low, high = quantizer.code_range
    codes = x.detach() / quantizer.step
    outside = (codes < low) | (codes > high)
    scale = (50 * max(high, -low)) ** -0.5
    torch.testing.assert_close(quantizer.offset.grad, (g * outside).sum() * scale)
    assert torch.equal(x.grad, g * ~outside)  # type: ignore[arg-type]


def test_a_clipping_level_learns_from_what_it_clips() -> None:
    """Equation 3 of arXiv:1805.06085, in the logarithm: level * sum of the gradients above the level."""
    x = (torch.rand(2, 40) * 4).requires_grad_()
    quantizer = begun(x.detach().clamp(max=2.0), "pact", bits=4, init="minmax")
    g = torch.randn(2, 40)
    (quantizer(x) * g).sum().backward()
    level = 15 * quantizer.step
    above = x.detach() > level
    assert 0 < int(above.sum()) < 80
    scale = (40 * 15) ** -0.5
    torch.testing.assert_close(quantizer.log_step.grad, level * (g * above).sum() * scale)
    torch.testing.assert_close(x.grad, g * ~above)


def test_the_largest_weight_is_the_largest_code_as_long_as_weights_are_trained() -> None:
    weight = nn.Parameter(torch.randn(4, 9))
    quantizer = WeightQuantizer("w", weight, bits=4, axis=0, how=QuantizerSettings("minmax"))
    quantizer.begin(quantizer.initial_step(weight))
    with torch.no_grad():
        weight.mul_(3)
    quantizer(weight)
    torch.testing.assert_close(quantizer.step, weight.detach().abs().amax(1) / 7)
    assert not quantizer.log_step.requires_grad
    quantizer.freeze()
    with torch.no_grad():
        weight.mul_(3)
    quantizer(weight)
    torch.testing.assert_close(quantizer.step, weight.detach().abs().amax(1) / 7)
    quantizer.eval()
    before = quantizer.log_step.clone()
    quantizer(3 * weight)
    assert torch.equal(before, quantizer.log_step)


def test_one_step_for_the_whole_weight() -> None:
    stage = model(weight={"granularity": "per_tensor"})
    x = torch.randn(5, 6)
    stage(x)
    activate(stage)
    assert stage.get_parameter("0.weight_quant.log_step").shape == ()
    codes = stage[0].weight_quant(stage[0].weight) / stage[0].weight_quant.step  # type: ignore[union-attr, operator]
    torch.testing.assert_close(codes, codes.round())


@pytest.mark.parametrize("side", ["weight", "activation"])
def test_none_leaves_one_side_in_float(side: str) -> None:
    stage, x = model(**{side: {"method": "none"}}), torch.randn(5, 6)
    stage(x)
    activate(stage)
    other = "activation" if side == "weight" else "weight"
    kinds = {"weight": "weight_quant", "activation": "input_quant"}
    names = [name for name, _ in quantizers(stage)]
    assert names == [f"{layer}.{kinds[other]}" for layer in (0, 2)]
    assert stage(x).shape == (5, 3)


def test_none_on_both_sides_leaves_layers_alone() -> None:
    stage = nn.Sequential(nn.Linear(2, 2))
    options = QuantOptions.model_validate({"weight": {"method": "none"}, "activation": {"method": "none"}})
    report = quantize_module(stage, options, stage="full", first=True, last=True)
    assert report.left_out == (("0", "methods 'none'"),)
    assert type(stage[0]) is nn.Linear


@given(seed=st.integers(0, 300), bits=st.integers(2, 8))
def test_tokens_have_steps_of_their_own(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 7, generator=generator) * 10.0 ** torch.arange(-2, 1).view(1, 3, 1)
    x[0, 0] = 0
    x.requires_grad_()
    quantizer = TokenQuantizer(bits)
    once = quantizer(x)
    assert torch.equal(quantizer(once.detach()), once)
    error = (once - x).detach().abs() / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-30)
    assert float(error.max()) <= 0.501 / (2 ** (bits - 1) - 1)
    assert not bool(once[0, 0].any())
    once.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]


def test_per_token_needs_no_calibration_of_inputs() -> None:
    stage, x = model(activation={"granularity": "per_token"}), torch.randn(5, 6)
    plain = F.linear(x, stage[0].weight, stage[0].bias)  # type: ignore[arg-type]
    torch.testing.assert_close(stage[0](x), plain)
    activate(stage)
    assert not torch.equal(stage[0](x), plain)
    assert [name for name, _ in quantizers(stage)] == ["0.weight_quant", "2.weight_quant"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["lsq", "lsq+", "pact"])
def test_no_step_reaches_zero_in_a_thousand_steps(method: str, optimizer: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16)
    quantizer = begun(x, method, bits=4)
    stepper = OPTIMIZERS[optimizer](quantizer.parameters())
    for _ in range(1000):  # a gradient that pulls the tensor, and with it the step, down
        stepper.zero_grad()
        (quantizer(x).square().sum() * 10).backward()
        stepper.step()
        assert float(quantizer.step) > 0
    y = quantizer(x)
    assert bool(torch.isfinite(y).all())
    assert torch.equal(quantizer(y), y)


def test_biases_snap_to_the_grid_of_the_accumulator_once_frozen() -> None:
    stage, x = model(), torch.randn(5, 6)
    stage(x)
    activate(stage)
    layer: Any = stage[0]
    assert layer.used_bias() is layer.bias
    set_state(stage, "frozen")
    step = layer.input_quant.step.double() * layer.weight_quant.step.double()
    codes = layer.used_bias().detach().double() / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert float((layer.used_bias() - layer.bias).detach().abs().max()) <= float(step.max()) / 2 + 1e-9
    again = snapped(layer.used_bias(), layer.input_quant.step, layer.weight_quant.step, bits=8)
    assert torch.equal(again, layer.used_bias())
    stage(x).sum().backward()
    assert torch.isfinite(layer.bias.grad).all()
    unsnapped: Any = model(bias={"snap": False})
    unsnapped(x)
    activate(unsnapped)
    set_state(unsnapped, "frozen")
    assert unsnapped[0].used_bias() is unsnapped[0].bias


@pytest.mark.slow
def test_compiled_arithmetic_gives_the_same_bits() -> None:
    x = torch.randn(64, 33)
    quantizer = begun(x, "lsq", bits=4)
    expected = quantizer(x)
    quantizer.how = QuantizerSettings(compiled=True)
    assert torch.equal(quantizer(x), expected)
