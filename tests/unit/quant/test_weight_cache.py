"""A weight that is quantized once per step gives the gradients of one that is quantized at every call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distqat.quant import (
    QuantOptions,
    activate,
    drop_weights,
    hold_weights,
    quantize_module,
    quantizers,
    set_state,
    settle_weights,
)


def stage(method: str = "lsq", bits: int = 4) -> nn.Module:
    """Two layers, calibrated and active."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    side = {"bits": bits, "method": method}
    options = QuantOptions.model_validate({"weight": side, "activation": side, "first_last_bits": bits})
    quantize_module(module, options, stage="s", first=True, last=True)
    module(torch.randn(8, 2, 6, 6))
    activate(module)
    return module


def microbatches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 8, 2, 6, 6, generator=torch.Generator().manual_seed(5)))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def trained(module: nn.Module, parts: list[Tensor], *, held: bool) -> dict[str, Tensor]:
    """The gradients of one step."""
    module.zero_grad(set_to_none=True)
    if held:
        hold_weights(module)
    for part in parts:
        module(part).square().sum().backward()
    settle_weights(module)
    drop_weights(module)
    return gradients(module)


@pytest.mark.parametrize("method", ["lsq", "minmax"])
def test_gradients_are_those_of_quantizing_every_time(method: str) -> None:
    parts = microbatches(4)
    held, plain = (trained(stage(method), parts, held=held) for held in (True, False))
    assert held.keys() == plain.keys()
    for name, gradient in plain.items():
        if name.endswith("weight_quant.log_step"):  # another order of summing
            torch.testing.assert_close(held[name], gradient, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(held[name], gradient), name


def test_the_next_step_has_the_weights_after_the_optimizer() -> None:
    module, (part, *_) = stage(), microbatches(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    trained(module, [part], held=True)
    before = module(part)
    optimizer.step()
    hold_weights(module)
    held = module(part)
    drop_weights(module)
    assert not torch.equal(held, before)
    assert torch.equal(held, module(part))


def test_evaluation_in_between_takes_part_in_nothing() -> None:
    module, parts = stage(), microbatches(2)
    expected = trained(module, parts, held=True)
    hold_weights(module)
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        first = module.eval()(parts[0])
    module.train()
    for part in parts:
        module(part).square().sum().backward()
    with torch.no_grad():
        assert torch.equal(module.eval()(parts[0]), first)
    settle_weights(module)
    drop_weights(module)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(module).items())


def test_what_is_dropped_leaves_no_gradient() -> None:
    module = stage()
    hold_weights(module)
    module(microbatches(1)[0]).sum().backward()
    drop_weights(module)
    settle_weights(module)
    assert not any("weight" in name for name in gradients(module))


def test_frozen_steps_and_parameters_without_gradient() -> None:
    module, parts = stage(), microbatches(2)
    set_state(module, "frozen")
    held = trained(module, parts, held=True)
    assert not any(name.endswith("log_step") for name in held)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    parts[0].requires_grad_()
    assert not trained(module, parts[:1], held=True)
    assert parts[0].grad is not None


def test_calibration_is_not_held() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2))
    quantize_module(module, QuantOptions(), stage="s", first=True, last=True)
    hold_weights(module)
    x = torch.randn(4, 3)
    calibrating = module(x)
    activate(module)
    assert not torch.equal(module(x), calibrating)
    assert {quantizer.state for _, quantizer in quantizers(module)} == {"active"}
