from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distqat.quant import QuantOptions, activate, quantize_module, quantizers, set_state
from distqat.quant.quantized_layers import QuantizedLayer, layer_kind


def conv1d(inputs: int, outputs: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    layer: nn.Module = Conv1D(outputs, inputs)
    return layer


CASES = {
    "Linear": (lambda: nn.Linear(6, 5), (3, 6), 0),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (2, 4, 8, 8), 0),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, padding_mode="circular"), (2, 4, 9), 0),
    "Conv1D": (lambda: conv1d(6, 5), (2, 3, 6), 1),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_twin_computes_on_the_quantized_input_and_weight(kind: str) -> None:
    make, shape, axis = CASES[kind]
    layer = make()
    plain = make()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(shape)
    assert layer_kind(layer) == kind
    quantize_module(layer, QuantOptions(), stage="front", first=True, last=True)
    assert isinstance(layer, QuantizedLayer)
    assert type(layer).__name__ == f"Quant{kind}"
    torch.testing.assert_close(layer(x), plain(x))  # calibrating: float
    activate(layer)
    assert layer.weight_quant.axis == axis
    assert layer.weight_quant.log_step.shape == (layer.weight.shape[axis],)
    with torch.no_grad():
        plain.weight.copy_(layer.weight_quant(layer.weight))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(layer(x), plain(layer.input_quant(x)))
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters() if parameter.requires_grad)


def test_float_checkpoints_load() -> None:
    layer = nn.Linear(4, 3)
    checkpoint = nn.Linear(4, 3).state_dict()
    quantize_module(layer, QuantOptions(), stage="front", first=False, last=False)
    missing, unexpected = layer.load_state_dict(checkpoint, strict=False)
    assert not unexpected
    assert all("_quant." in name for name in missing)
    assert torch.equal(layer.weight, checkpoint["weight"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(10, 4)
        self.block = nn.Linear(4, 4)
        self.again = self.block
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.again(self.block(self.wte(tokens))))
        return out


def test_ties_stay_tied() -> None:
    model = Tied()
    quantize_module(model, QuantOptions(), stage="full", first=True, last=True)
    assert model.again is model.block
    assert model.head.weight is model.wte.weight
    assert len(list(quantizers(model))) == 4
    model(torch.randint(1, 10, (3, 5)))
    set_state(model, "active")
    assert model(torch.randint(1, 10, (3, 5))).shape == (3, 5, 10)


def test_what_reads_its_weight_elsewhere_is_left_alone() -> None:
    attention = nn.MultiheadAttention(4, 2)
    assert layer_kind(attention.out_proj) is None
    report = quantize_module(nn.Sequential(attention), QuantOptions(), stage="s", first=True, last=True)
    assert not report.layers
    assert any("MultiheadAttention" in reason for _, reason in report.left_out)


def test_autocast_trains_a_quantized_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(2, 3, 8, 8)
    quantize_module(model, QuantOptions(), stage="full", first=True, last=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        activate(model)
        out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "0.input_quant.log_step" in learned
    for name, parameter in learned.items():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
