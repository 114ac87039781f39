from __future__ import annotations

import pytest
import torch
from torch import nn

from distqat.quant import ActivationQuantizer, QuantOptions, coverage, quantize_module, quantizers


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 2)
    )


def test_shares_by_hand() -> None:
    stage = model()
    options = QuantOptions.model_validate(
        {"skip": ["4"], "overrides": [{"match": "3", "weight": {"bits": 4}}]}
    )
    quantize_module(stage, options, stage="full", first=True, last=True)
    found = coverage(stage, [torch.empty(1, 1, 4, 4)])
    assert found.weights == {"W8A8": 36, "W4A8": 640, "float": 20}
    assert found.macs == {"W8A8": 16 * 36, "W4A8": 640, "float": 20}
    assert found.weight_share == pytest.approx(676 / 696)
    assert found.mac_share == pytest.approx(1216 / 1236)
    assert found.lines()[0].startswith("weights quantized: 97.1%")
    assert "float 1.6%" in found.lines()[1]


def test_a_float_module_has_no_coverage() -> None:
    found = coverage(model())
    assert found.weight_share == 0
    assert found.mac_share is None
    assert len(found.lines()) == 1


def test_counting_changes_nothing() -> None:
    stage = model()
    quantize_module(stage, QuantOptions(), stage="full", first=True, last=True)
    stage[1].eval()
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    coverage(stage, [torch.randn(2, 1, 4, 4)])
    assert all(torch.equal(before[name], value) for name, value in stage.state_dict().items())
    assert (stage.training, stage[1].training) == (True, False)
    assert not any(child._forward_hooks for child in stage.modules())
    assert any(isinstance(quantizer, ActivationQuantizer) for _, quantizer in quantizers(stage))


def test_a_transposed_convolution_is_counted_as_float() -> None:
    stage = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2))
    found = coverage(stage, [torch.empty(1, 2, 4, 4)])
    assert found.macs == {"float": 2 * 3 * 2 * 2 * 16}
