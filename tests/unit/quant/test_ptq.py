from __future__ import annotations

import pytest
import torch
from torch import nn

from distqat.errors import QuantError
from distqat.quant import QuantOptions, quantize_module, quantizers
from distqat.quant.ptq import end_observing, load_float, start_observing


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4)
    )


def test_a_float_model_is_calibrated_and_nothing_else_of_it_changes() -> None:
    plain, x = small(), torch.randn(64, 1, 6, 6)
    plain(x)
    model = small()
    quantize_module(model, QuantOptions(), stage="full", first=True, last=True)
    load_float(model, plain.state_dict())
    start_observing(model)
    for part in x.split(16):
        torch.testing.assert_close(model(part), plain.eval()(part))
    end_observing(model)
    assert {quantizer.state for _, quantizer in quantizers(model)} == {"frozen"}
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not any(child.training for child in model.modules())
    error = (model(x) - plain(x)).detach().square().mean() / plain(x).detach().square().mean()
    assert 0 < float(error) < 1e-3


def test_what_the_float_model_lacks_is_named() -> None:
    model, state = small(), small().state_dict()
    quantize_module(model, QuantOptions(), stage="full", first=True, last=True)
    del state["1.running_mean"]
    with pytest.raises(QuantError, match=r"'1\.running_mean' is missing in the float model"):
        load_float(model, state)
    with pytest.raises(QuantError, match="no real data"):
        end_observing(model)
