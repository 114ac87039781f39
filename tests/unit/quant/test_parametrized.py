"""Weight norm: what is quantized is the weight that the layer uses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from distqat.quant import (
    QuantOptions,
    activate,
    coverage,
    drop_weights,
    hold_weights,
    module_names,
    quantize_module,
    record,
    report_of,
    settle_weights,
)
from distqat.quant.parametrized import settle_computed_weights
from distqat.quant.quantized_layers import QuantConv1d, QuantizedLayer


def stage() -> nn.Sequential:
    """As the positional convolution of wav2vec2: grouped, one norm per place of the kernel."""
    torch.manual_seed(0)
    conv = weight_norm(nn.Conv1d(8, 8, 4, groups=2, padding=2), dim=2)
    return nn.Sequential(conv, nn.GELU(), nn.Conv1d(8, 3, 1))


def active(bits: int = 4) -> tuple[nn.Sequential, Tensor]:
    module, x = stage(), torch.randn(5, 8, 11)
    side = {"bits": bits}
    options = QuantOptions.model_validate({"weight": side, "activation": side, "first_last_bits": bits})
    quantize_module(module, options, stage="s", first=True, last=True, flow=record(module, [x]))
    module(x)
    activate(module)
    return module, x


def test_the_weight_in_use_is_on_the_grid() -> None:
    module, x = active()
    layer = module[0]
    assert isinstance(layer, QuantizedLayer)
    used = layer.weight_quant(layer.weight)
    codes = used / layer.weight_quant.step.view(-1, 1, 1)
    torch.testing.assert_close(codes, codes.round())
    assert codes.abs().max() <= 7
    taken = layer.input_quant(x)
    expected = nn.functional.conv1d(taken, used, layer.used_bias(), padding=2, groups=2)
    assert torch.equal(type(layer).forward(layer, x), expected)  # without the hook of its joint


def test_both_parameters_learn_and_the_state_has_the_names_of_the_float_model() -> None:
    module, x = active()
    assert set(stage().state_dict()) <= set(module.state_dict())
    hold_weights(module)
    for part in (x, x + 1):
        module(part).square().sum().backward()
    settle_weights(module)
    drop_weights(module)
    held = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"} <= set(held)
    module.zero_grad(set_to_none=True)
    for part in (x, x + 1):
        module(part).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, held.get(name), rtol=1e-4, atol=1e-4)


def test_it_is_covered_and_nothing_of_it_is_left_out() -> None:
    module, x = active()
    covered = coverage(module, [x])
    assert covered.weight_share == covered.mac_share == 1.0
    assert sum(covered.weights.values()) == 8 * 4 * 4 + 3 * 8
    report = report_of(module)
    assert report is not None
    assert report.left_out == ()
    assert [layer.kind for layer in report.layers] == ["Conv1d", "Conv1d"]
    assert module_names(stage())["0"]


def test_a_copy_works_and_a_constant_weight_gives_the_same() -> None:
    module, x = active()
    copied = copy.deepcopy(module)
    expected = module(x)
    assert torch.equal(copied(x), expected)
    settle_computed_weights(copied)
    assert type(copied[0]) is QuantConv1d
    assert isinstance(copied[0].weight, nn.Parameter)
    assert torch.equal(copied(x), expected)
    assert torch.equal(module(x), expected)
    assert hasattr(module[0], "parametrizations")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_computed_weights_stay_in_float_and_are_told() -> None:
    both = nn.Sequential(nn.Linear(4, 4))
    weight_norm(weight_norm(both[0], "bias", dim=None))
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))  # type: ignore[no-untyped-call]
    for module in (both, old):
        report = quantize_module(module, QuantOptions(), stage="s", first=True, last=True)
        assert report.layers == ()
        assert [name for name, _ in report.left_out] == ["0"]
        assert coverage(module).weight_share == 0.0
