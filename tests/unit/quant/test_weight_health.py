"""What is measured of weights and their codes, and when it is called sick."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from distqat.quant import QuantOptions, WeightQuantizer, activate, quantize_module, quantizers, set_state
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.quant.weight_health import (
    CLIPPED,
    COARSE,
    UNUSED,
    WeightHealth,
    sentences,
    summary,
    weight_health,
)

GOOD = WeightHealth("a", 8, error=0.007, clipped=0.0, largest_code=127, codes_used=0.9)


def quantized(*layers: nn.Module, bits: int = 8, method: str = "lsq", **weight: object) -> nn.Sequential:
    model = nn.Sequential(*layers)
    body = {"skip": [], "first_last_bits": bits, "weight": {"bits": bits, "method": method, **weight}}
    options = QuantOptions.model_validate({**body, "activation": {"method": "none"}})
    quantize_module(model, options, stage="full", first=True, last=True)
    activate(model)
    return model


def scale_steps(model: nn.Module, factor: float) -> None:
    """In evaluation, since steps are held to the weights as long as these are trained."""
    model.eval()
    with torch.no_grad():
        for _, quantizer in quantizers(model):
            quantizer.freeze()
            quantizer.log_step += torch.tensor(factor).log()


def test_a_fresh_layer_is_well() -> None:
    torch.manual_seed(0)
    (found,) = weight_health(quantized(nn.Linear(64, 32), init="minmax"))
    assert found.ailment is None
    assert (found.name, found.bits, found.clipped, found.largest_code) == ("0", 8, 0.0, 127)
    assert 0.002 < found.error < 0.01
    assert 0.5 < found.codes_used <= 1


def test_steps_that_weights_outgrew_clip_them() -> None:
    torch.manual_seed(0)
    model = quantized(nn.Linear(64, 32), init="minmax")
    scale_steps(model, 0.5)
    (found,) = weight_health(model)
    layer = model[0]
    assert isinstance(layer, QuantizedLayer)
    assert isinstance(layer.weight_quant, WeightQuantizer)
    weight = layer.weight.detach()
    step, made = layer.weight_quant.step_of_each(weight), layer.weight_quant(weight).detach()
    assert found.clipped == pytest.approx(float((weight.abs() > 127.5 * step).float().mean()))
    assert found.clipped > 0.3
    assert found.error == pytest.approx(float((made - weight).norm() / weight.norm()))
    assert found.ailment == CLIPPED


def test_steps_that_are_too_large_leave_codes_unused() -> None:
    torch.manual_seed(0)
    model = quantized(nn.Linear(64, 32), nn.Linear(32, 8), init="minmax")
    scale_steps(model, 16.0)
    found = weight_health(model)
    assert [each.largest_code for each in found] == [8, 8]
    assert [each.ailment for each in found] == [UNUSED, UNUSED]
    assert found[0].codes_used == pytest.approx(17 / 255)
    assert summary(found)["range_used_median"] == pytest.approx(8 / 127)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(nn.Linear, (64, 32)), (nn.Conv2d, (8, 6, 3)), (nn.Conv1d, (4, 6, 5)), (Conv1D, (32, 64))],
)
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor", "per_group"])
def test_every_kind_of_layer(kind: type[nn.Module], sizes: tuple[int, ...], granularity: str) -> None:
    torch.manual_seed(0)
    model = quantized(kind(*sizes), init="minmax", granularity=granularity, group=32)
    (found,) = weight_health(model)
    assert found.largest_code == 127
    assert found.ailment is None


def test_steps_that_follow_are_judged_where_they_will_be_and_stay_where_they_are() -> None:
    torch.manual_seed(0)
    model = quantized(nn.Linear(64, 32), method="minmax")
    with torch.no_grad():
        model[0].weight *= 3  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (found,) = weight_health(model)
    assert (found.ailment, found.clipped) == (None, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    set_state(model.eval(), "frozen")  # now they follow no more
    assert weight_health(model)[0].ailment == CLIPPED


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_few_bits_are_well_where_their_steps_are(bits: int) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(64, 32), nn.Linear(32, 8)
    for layer in layers:
        nn.init.normal_(layer.weight)
    found = weight_health(quantized(*layers, bits=bits))  # steps of least squared error
    assert [each.ailment for each in found] == [None, None]
    assert found[0].error > 0.015 or bits == 6


def test_weights_in_float_are_not_there() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    assert weight_health(model) == []
    options = QuantOptions.model_validate({"skip": []})
    quantize_module(model, options, stage="full", first=True, last=True)
    assert weight_health(model) == []
    assert summary([]) == {}
    assert sentences([]) == {}


def test_one_sentence_for_each_ailment_names_the_worst() -> None:
    layers = [
        GOOD,
        WeightHealth("b", 8, 0.2, 0.168, 127, 1.0),
        WeightHealth("c", 8, 0.3, 0.36, 127, 1.0),
        WeightHealth("d", 8, 0.2, 0.0, 4, 0.03),
        WeightHealth("e", 8, 0.03, 0.0, 127, 0.5),
    ]
    assert [each.ailment for each in layers] == [None, CLIPPED, CLIPPED, UNUSED, COARSE]
    said = sentences(layers, "front")
    assert list(said) == [CLIPPED, UNUSED, COARSE]
    assert said[CLIPPED].startswith("front: weights have outgrown their steps in 2 of 5 quantized layers")
    assert "36.0% of them in c (healthy is at most 0.5% with 8 bits)" in said[CLIPPED]
    assert "d uses codes up to 4 of 127" in said[UNUSED]
    assert "those of e by 3.0% (healthy is at most 1.5% with 8 bits)" in said[COARSE]
    told = summary(layers)
    assert (told["layers"], told["sick"], told["worst"]) == (5, 4, "c")
    assert (told["error_max"], told["clipped_median"]) == (0.3, 0.0)


def test_weights_of_zeros_are_not_sick() -> None:
    model = quantized(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator]
    (found,) = weight_health(model)
    assert (found.error, found.largest_code, found.ailment) == (0.0, 0.0, None)
